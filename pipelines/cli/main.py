"""`plait`: the verbs, and the border where every error becomes one sentence.

Exit codes: 0 done, 1 a run that failed, 2 bad input. With --json the last line of standard output is one JSON
object; all else goes to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from infra.types import PlaitError, UserError
from pipelines.ask import DEFAULT_LAG
from pipelines.cli import compare as comparison
from pipelines.cli import evaluate as evaluation
from pipelines.cli import explore, going, health, look, show, welcome, work
from pipelines.cli import export as out
from pipelines.cli import sample as drawn

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
    help="From raw video, images and text to a trained any-to-any model, with every row accounted for.",
)

# typer keeps its click to itself: the base of its own error for bad parameters is the one for all bad usage
USAGE_ERROR = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

Overrides = Annotated[
    list[str] | None, typer.Argument(help="name=value: source=DIR, clips.threshold=30, select.flow=...")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Only = Annotated[str | None, typer.Option(help="Run this stage alone, over what stands.")]
From = Annotated[str | None, typer.Option("--from", help="Run this stage and all after it.")]
To = Annotated[str | None, typer.Option("--to", help="Run this stage and all that it needs.")]
Force = Annotated[bool, typer.Option("--force", help="Compute also what is fresh.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N files, ordered by H(path).")]
Refresh = Annotated[list[str] | None, typer.Option(help="Let this held stage see its inputs as they are now.")]
Waves = Annotated[
    int | None, typer.Option("--wave", min=1, help="Stream the input through the stages, so many files at a time.")
]
Lag = Annotated[int, typer.Option(min=1, help="With --wave: finished waves that may wait for a reader.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of a Ray cluster's head; http://HEAD:8265 submits; else RAY_ADDRESS, or a Ray of its own."
    ),
]
Retry = Annotated[bool, typer.Option("--retry-quarantined", help="Try quarantined units again, and only those.")]


@app.command()
def plan(
    overrides: Overrides = None,
    only: Only = None,
    start: From = None,
    to: To = None,
    force: Force = False,
    limit: Limit = None,
    refresh: Refresh = None,
    retry_quarantined: Retry = False,
    json: Json = False,
) -> None:
    """What would run, on how many units, and why. Runs nothing."""
    work.plan(overrides or [], work.ask(only, start, to, force, limit, refresh, retry_quarantined), json)


@app.command()
def run(  # noqa: PLR0913, PLR0917 - a flag each
    overrides: Overrides = None,
    only: Only = None,
    start: From = None,
    to: To = None,
    force: Force = False,
    limit: Limit = None,
    refresh: Refresh = None,
    retry_quarantined: Retry = False,
    wave: Waves = None,
    lag: Lag = DEFAULT_LAG,
    address: Address = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps of every training: an artifact in MLflow.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="With http://HEAD:8265: submit the run and return at once.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as plan.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say errors, and one line at the end.")] = False,
    json: Json = False,
) -> None:
    """Bring all stages up to date, or go on after a crash.

    Computes only what moved; after a crash, Ctrl-C or `plait cancel` the same command goes on.
    """
    if quiet:
        show.be_quiet()
    asked = work.ask(only, start, to, force, limit, refresh, retry_quarantined, wave, lag, profile)
    if dry_run:
        work.plan(overrides or [], asked, json)
    else:
        work.run([*(overrides or []), *work.at(address)], asked, detach, json)


@app.command()
def logs(
    arguments: Annotated[list[str] | None, typer.Argument(help="STAGE, then overrides.")] = None,
    run: Annotated[
        str | None, typer.Option(help="A run's id, or a unique beginning; the latest one otherwise.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
    json: Json = False,
) -> None:
    """What a run, or one stage of it, said. Read from the bucket alone."""
    going.logs(arguments or [], run, follow, json)


@app.command()
def cancel(
    arguments: Annotated[list[str] | None, typer.Argument(help="RUN, then overrides.")] = None, json: Json = False
) -> None:
    """Ask a run to stop, from any host. Finished shards are kept."""
    going.cancel(arguments or [], json)


@app.command()
def status(overrides: Overrides = None, json: Json = False) -> None:
    """The latest materialisations, from the ledger alone."""
    look.status(overrides or [], json)


@app.command()
def why(
    arguments: Annotated[list[str] | None, typer.Argument(help="STAGE, then overrides.")] = None,
    row: Annotated[str | None, typer.Option(help="A row's key: 32 hex digits, or a unique beginning.")] = None,
    json: Json = False,
) -> None:
    """Why a stage is stale, or what happened to one row."""
    look.why(arguments or [], row, json)


@app.command()
def lineage(
    target: Annotated[
        str, typer.Argument(help="model, a checkpoint, captions, captions@7, a row's key, or a raw file.")
    ],
    overrides: Overrides = None,
    down: Annotated[
        bool, typer.Option("--down", help="From here to checkpoints, instead of back to raw files.")
    ] = False,
    json: Json = False,
) -> None:
    """From a checkpoint back to raw files, or forward from one."""
    look.lineage(target, overrides or [], down, json)


@app.command()
def quarantine(
    arguments: Annotated[list[str] | None, typer.Argument(help="STAGE, then overrides.")] = None, json: Json = False
) -> None:
    """The units that could not be processed, with reason and error."""
    look.quarantine(arguments or [], json)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A run's id, dataset@version, or a checkpoint.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """What differs between two runs, versions or checkpoints."""
    look.diff(a, b, overrides or [], json)


@app.command()
def export(
    target: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="model, or a checkpoint's name.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    overrides: Overrides = None,
    kind: Annotated[str, typer.Option("--format", help="hf: config.json and model.safetensors.")] = "hf",
    layout: Annotated[str | None, typer.Option(help="Where several fit: emu3 for Llama's.")] = None,
    json: Json = False,
) -> None:
    """Write a checkpoint as transformers reads it. What it came from goes with it."""
    out.export(target, folder, overrides or [], kind, layout, json)


@app.command()
def sample(  # noqa: PLR0913, PLR0917 - a flag each
    target: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="model, a checkpoint's name, or a folder.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Prompts, then overrides.")] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="Samples of each prompt.")] = 1,
    folder: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("samples"),
    negative: Annotated[str, typer.Option(help="What guidance steers away from; unset: from no words.")] = "",
    guidance: Annotated[float, typer.Option(help="1: none.")] = 1.0,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Ids that compete; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="The likeliest ids of this share compete.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of drawing latents out of noise.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the first sample; the next ones count on.")] = 0,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of a side; unset: as the packs had most.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a film.")] = None,
    image: Annotated[Path | None, typer.Option(help="Say what this picture shows; the prompt is a question.")] = None,
    video: Annotated[Path | None, typer.Option(help="Go on with this film.")] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Go on with the prompt: text, and pictures if it likes.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of text.")] = 128,
    fps: Annotated[float, typer.Option(min=0.1, help="Of the files of films.")] = 8.0,
    stream: Annotated[bool, typer.Option("--stream", help="Rewrite the pictures as they grow, and show one.")] = False,
    json: Json = False,
) -> None:
    """Draw pictures, films or texts from a checkpoint. Each has a seed of its own."""
    from pipelines.sample import Wish

    prompts, overrides = drawn.prompts_and_overrides(arguments or [])
    how = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p, "steps": steps}
    wish = Wish(
        prompts=prompts, number=number, folder=folder.expanduser(), negative=negative, how=how, seed=seed, size=size,
        frames=frames, image=image, video=video, text=text, max_tokens=max_tokens, fps=fps,
    )  # fmt: skip
    drawn.sample(target, overrides, wish, stream, json)


@app.command()
def doctor(
    overrides: Overrides = None,
    storage: Annotated[
        bool, typer.Option("--storage", help="Try out all that plait needs of the store at the root, and that alone.")
    ] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Look whether all that a run needs is there. Packages, store, clock, disk, source, MLflow, Ray."""
    health.doctor([*(overrides or []), *work.at(address)], storage, json)


@app.command()
def ui(
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; another address lets others read everything.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8420,
) -> None:
    """See all of it in a browser. The graph, clips, packs, trainings, evaluations; it reads only."""
    explore.ui(overrides or [], host, port)


@app.command()
def forget(
    target: Annotated[str, typer.Argument(help="A raw file, or the key of a row that came from it.")],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it reached.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove the bytes from older versions.")] = False,
    json: Json = False,
) -> None:
    """Take raw content down, and all rows derived from it. Names the checkpoints that it tainted."""
    work.forget(target, overrides or [], dry_run, purge, json)


@app.command()
def gc(
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it.")] = False,
    json: Json = False,
) -> None:
    """Delete files that nothing names any more. They are of lost races and dead tries."""
    if dry_run == yes:
        raise UserError("plait gc needs --dry-run to list or --yes to delete")
    look.gc(overrides or [], yes, json)


@app.command()
def compact(
    arguments: Annotated[list[str] | None, typer.Argument(help="STAGE ..., then overrides.")] = None, json: Json = False
) -> None:
    """Write the standing versions as fewer files. Nothing goes stale."""
    look.compact(arguments or [], json)


@app.command()
def evaluate(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="CHECKPOINT (its manifest, or TRAINING/step-N), then overrides.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until it is stopped.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Score what has no score, then end: the default.")] = False,
    every: Annotated[str | None, typer.Option(help="With --watch: time between looks, as 90s, 10m, 6h.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Most new checkpoints a look, newest first.")] = None,
    page: Annotated[str | None, typer.Option(help="Write the scores over steps to this HTML file.")] = None,
    emit_cron: Annotated[str | None, typer.Option(help="Only print a schedule: k8s or crontab.")] = None,
    image: Annotated[str, typer.Option(help="Of plait, in the manifest for k8s.")] = evaluation.When.image,
    address: Address = None,
    json: Json = False,
) -> None:
    """Score every checkpoint that has no score yet. It does not matter who made it."""
    when = evaluation.When(watch, once, every, emit_cron, image)
    evaluation.evaluate(arguments or [], when, evaluation.Wish(budget=budget), address, page, json)


@app.command()
def compare(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="CHECKPOINT CHECKPOINT ..., as `evaluate` calls them, then overrides.")
    ] = None,
    page: Annotated[str | None, typer.Option("--out", help="Write the pairs to this HTML file.")] = None,
    votes: Annotated[list[str] | None, typer.Option(help="Read what the page saved; one option a file.")] = None,
    suite: Annotated[str | None, typer.Option(help="With --out: answers of this suite alone.")] = None,
    seed: Annotated[int, typer.Option(help="With --out: of the order and of the sides.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="With --out: most pairs.")] = 200,
    json: Json = False,
) -> None:
    """Let people choose between checkpoints, blind. Their votes are read back."""
    wish = comparison.Wish(page=page, votes=tuple(votes or ()), suite=suite, seed=seed, limit=limit)
    comparison.compare(arguments or [], wish, json)


@app.command()
def sync(overrides: Overrides = None, json: Json = False) -> None:
    """Tell MLflow of what it does not know yet, from the ledger."""
    work.sync(overrides or [], json)


def main() -> None:
    """Entry point of the `plait` command."""
    try:
        raise SystemExit(app(sys.argv[1:], standalone_mode=False) if sys.argv[1:] else welcome.say())
    except USAGE_ERROR as error:
        _fail(UserError(f"{error.format_message().rstrip('.')}: see `plait --help`"), 2)
    except UserError as error:
        _fail(error, 2)
    except PlaitError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail(PlaitError("stopped; finished shards are kept: the same command goes on"), 1)


def _fail(error: PlaitError, code: int) -> None:
    from pipelines.cli.show import emit_error

    emit_error(str(error), "--json" in sys.argv)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
