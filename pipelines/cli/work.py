"""`plan` and `run`: the verbs that look ahead and the one that works."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from infra.types import PlaitError, UserError, without_secrets
from pipelines.ask import DEFAULT_LAG, Ask
from pipelines.cli import show
from pipelines.cli.corpus import ensure_corpus, source_so_far
from pipelines.cli.going import stopped_by_signals
from pipelines.cli.world import cards, planner_of, record, services_of, stop_ray, tales, tracker_of, tracking_places


def ask(
    only: str | None,
    start: str | None,
    to: str | None,
    force: bool,
    limit: int | None,
    refresh: list[str] | None,
    retry: bool,
    wave: int | None = None,
    lag: int = DEFAULT_LAG,
    profile: bool = False,
) -> Ask:
    """The flags as one value."""
    if wave and (only or start or force or retry):
        raise UserError("--wave goes with --to, --limit and --refresh alone: leave out --only, --from, --force and --retry-quarantined")  # fmt: skip  # noqa: E501
    if only and (start or to):
        raise UserError("--only goes with neither --from nor --to: --only S runs S alone, --from S --to T a stretch")
    return Ask(only, start, to, force, limit, tuple(refresh or ()), retry, wave, lag, profile)


def at(address: str | None) -> list[str]:
    """`--address` as an override."""
    return [f"cluster.address={address}"] if address else []


def plan(overrides: Sequence[str], asked: Ask, as_json: bool) -> None:
    """Print the plan."""
    from pipelines.cli.compose import setup

    made = setup(overrides)
    source = source_so_far(made)
    planner = planner_of(made, asked, source)
    plans = planner.plan_all()
    stages = [_seen(planner, p) for p in plans]
    rows = []
    for p, s in zip(plans, stages, strict=True):
        state = f"{s['state']} (held; input {s['held']:+,} units since)" if s["held"] else s["state"]
        rows.append([s["name"], state, *(s[n] for n in ("keep", "compute", "drop")), show.cause_text(s["cause"])])
        if p.warning:
            show.err.print(f"note: {p.warning}", style="yellow", markup=False)
    table = show.table(
        f"Plan of {made.graph.name}", ("stage", "state", "keep", "compute", "drop", "cause"), rows, left=2
    )
    table.columns[-1].justify, table.columns[-1].overflow = "left", "fold"
    show.out(as_json).print(table)
    if source is None:
        show.err.print("No source is given: `plait run` would first write the sample corpus.", markup=False)
    if as_json:
        show.emit({"pipeline": made.graph.name, "key": planner.pipeline_key(plans), "stages": stages})


def _seen(planner: Any, plan: Any) -> dict[str, Any]:
    """A plan as people see it: what another run is making at this moment, `plait run` would wait for."""
    entry = plan.to_json()
    if plan.state in ("full", "incremental"):
        holder = planner.ledger.folder(plan.name, plan.key).holder()
        if holder:
            who = f"made by process {holder['pid']} on {holder['host']} since {holder['at'][:19]}"
            entry |= {"state": "waiting", "cause": [{"leaf": "another run", "was": None, "now": who}]}
    return entry


def run(overrides: Sequence[str], asked: Ask, detach: bool, as_json: bool) -> None:
    """Run the pipeline, here or as a Ray job, and print what became of every row."""
    from infra.cluster import checked, is_job_server
    from pipelines.cli import submit
    from pipelines.cli.compose import setup, source_of
    from pipelines.run import Runner

    made = setup(overrides)
    address = made.config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address and is_job_server(address):
        submit.submit(made, address, detach, as_json)
        return
    if detach:
        raise UserError("--detach is for a run that is submitted: add --address http://HEAD:8265")
    checked(address)  # before anything is written
    source = source_of(made)
    show.keep_stdout()
    progress = show.ConsoleProgress()
    try:
        if made.config.source is None:
            ensure_corpus(made, progress)
        planner = planner_of(made, asked, source)
        services = services_of(made, source, progress)
        runner = Runner(planner, services, asked, record())
        services.ray = stopped_by_signals(runner.open, progress, services.ray)
        try:
            result = runner.run()
        except PlaitError as error:
            _failed(runner.result, error, as_json)
    finally:
        progress.stop()
        stop_ray()
    _show_result(made, result, as_json)


def _show_result(made: Any, result: Any, as_json: bool) -> None:
    console, document = show.out(as_json), result.to_json()
    if show.is_quiet():
        console.print(_in_one_line(document), markup=False, soft_wrap=True)
    else:
        console.print(show.funnel(result.stages))
        _last_words(console, made, document)
    if as_json:
        show.emit(document)


def show_record(made: Any, record: Mapping[str, Any], as_json: bool) -> None:
    """What became of every row, by the record of a run that worked elsewhere: as that run said it there."""
    from pipelines.run import Result

    names = ("run_id", "root", "ok", "stages")
    result = Result(**{name: record[name] for name in names}, error=record.get("error"))
    if result.ok:
        _show_result(made, result, as_json)
    else:
        _show_failure(result, str(result.error), as_json)


def _failed(result: Any, error: PlaitError, as_json: bool) -> NoReturn:
    """What was reached, then the sentence; the JSON object is the same as that of a good run."""
    from pipelines.run import exit_code

    _show_failure(result, str(error), as_json)
    raise SystemExit(exit_code(error))


def _show_failure(result: Any, sentence: str, as_json: bool) -> None:
    if not show.is_quiet():
        show.out(as_json).print(show.funnel(result.stages))
    show.emit_error(sentence, False)
    if as_json:
        show.emit(result.to_json())


def sync(overrides: Sequence[str], as_json: bool) -> None:
    """Make MLflow whole from the ledger."""
    from infra.ledger import Ledger
    from infra.store import Store
    from infra.types import RunError
    from pipelines.cli.compose import setup
    from pipelines.tell import Teller

    made = setup(overrides)
    teller = Teller(Ledger(made.root), Store(made.root), cards, lambda: tracker_of(made), tales)
    told, untold = teller.sync()
    teller.end("FINISHED")
    if untold:
        raise RunError(f"{untold} materialisations are still untold ({teller.trouble or 'tracking is off'}): start MLflow, then `plait sync`")  # fmt: skip  # noqa: E501
    show.out(as_json).print(f"MLflow was told of {told} materialisations; it knows all of them now.")
    if as_json:
        show.emit({"told": told, "untold": untold})


def forget(target: str, overrides: Sequence[str], dry_run: bool, purge: bool, as_json: bool) -> None:
    """Deny, drop, report, and with `purge` remove the bytes."""
    from pipelines import forget as takedowns
    from pipelines.cli.compose import setup, source_of
    from pipelines.run import Runner
    from pipelines.standing import Standing
    from stages.base import RowStage

    made = setup(overrides)
    standing = Standing(made.root)
    found = takedowns.find(standing, target)
    report: dict[str, Any] = {**found.to_json(), "done": not dry_run, "purged_bytes": 0, "old_versions": []}
    if not dry_run:
        takedowns.deny(standing, found)
        asked = Ask(rows_only=True)
        source = source_of(made)
        show.keep_stdout()
        progress = show.ConsoleProgress()
        try:
            services = services_of(made, source, progress)
            Runner(planner_of(made, asked, source), services, asked, record()).run()
        finally:
            progress.stop()
            stop_ray()
        _taint(made, standing, found)
        standing = Standing(made.root)
        report["old_versions"] = takedowns.old_versions(standing, found)
        if purge:
            rows = [node.name for node in made.graph if isinstance(node.stage, RowStage)]
            report["purged_bytes"] = takedowns.purge(standing, found, rows)
    _show_takedown(show.out(as_json), report)
    if as_json:
        show.emit(report)


def _taint(made: Any, standing: Any, found: Any) -> None:
    """Tag the logged models of tainted checkpoints, where MLflow knows them."""
    told = [standing.told(done) for dones in standing.all.values() for done in dones]
    tracker = tracker_of(made) if any(t and t.get("models") for t in told) else None
    if tracker:
        tracker.taint(found.checkpoints, f"was trained on {', '.join(found.labels)}, which was taken down")


def _show_takedown(console: Any, report: dict[str, Any]) -> None:
    for name, count in report["derived"].items():
        console.print(f"{name:<12}{count:>6} derived rows {'dropped' if report['done'] else 'would go'}", markup=False)
    for manifest in report["tainted"]["checkpoints"]:
        console.print(f"tainted     {manifest}", markup=False, soft_wrap=True)
    if report["tainted"]["packs"]:
        console.print(f"tainted     {len(report['tainted']['packs'])} packs: `plait run` makes new ones", markup=False)
    if report["old_versions"]:
        kept = "were removed" if report["purged_bytes"] else "still hold the bytes: --purge removes those of row stages"
        console.print(f"{len(report['old_versions'])} older versions {kept}.", markup=False)


def _last_words(console: Any, made: Any, document: dict[str, Any]) -> None:
    show.requests(console, document["stages"])
    if document["evaluation"]:
        console.print()
        console.print(show.metrics_table(document["evaluation"]))
    console.print()
    empty = [s["name"] for s in document["stages"] if s["state"] == "empty"]
    bad = sum(s["quarantined"] or 0 for s in document["stages"])
    if document["checkpoint"]:
        console.print(f"Checkpoint  {document['checkpoint']}", markup=False, soft_wrap=True)
    if made.config.tracking.enabled:
        uri = tracking_places(made)[0]
        uri = without_secrets(uri)
        command = f"mlflow ui --backend-store-uri {uri}" if "://" in uri and not uri.startswith("http") else uri
        console.print(f"MLflow      {command}", markup=False, soft_wrap=True)
    if bad:
        console.print(f"Quarantine  {bad} units: plait quarantine{root_hint(made)}", markup=False, soft_wrap=True)
    if all(s["state"] in ("fresh", "skipped") for s in document["stages"]):
        console.print("Nothing to do: everything is fresh.", markup=False)
    if empty:
        console.print(f"Nothing to work on for {', '.join(empty)}: their inputs have no rows.", markup=False)
    _look_next(console, root_hint(made), bool(document["checkpoint"]))


def _look_next(console: Any, root: str, has_model: bool) -> None:
    """Three things to look at."""
    things = [(f"plait ui{root}", "all of it, in a browser")]
    if has_model:
        things += [
            (f'plait sample model "a red circle" -n 4 --out drawn{root}', "pictures from the checkpoint"),
            (f"plait lineage model{root}", "from the checkpoint back to raw files"),
        ]
    else:
        things += [
            (f"plait status{root}", "this table again, and why units gave no row"),
            (f"plait quarantine{root}", "what could not be processed, and why"),
        ]
    console.print()
    width = max(len(command) for command, _ in things)
    for command, what in things:
        line = f"{command:<{width}}  {what}"
        console.print(line if len(line) <= show.WIDTH else command, markup=False, soft_wrap=True)


def _in_one_line(document: Mapping[str, Any]) -> str:
    made = [s for s in document["stages"] if s["state"] not in ("fresh", "skipped")]
    bad = sum(s["quarantined"] or 0 for s in document["stages"])
    quarantine = f", {bad} units in quarantine" if bad else ""
    checkpoint = f", {document['checkpoint']}" if document["checkpoint"] else ""
    return f"run {document['run_id']}: {len(made)} of {len(document['stages'])} stages made{quarantine}{checkpoint}"


def root_hint(made: Any) -> str:
    """The overrides by which another verb finds the same root."""
    if made.config.storage.root:
        at = f" storage.endpoint={made.config.storage.endpoint}" if made.config.storage.endpoint else ""
        return f" storage=s3 storage.root={made.config.storage.root}{at}"
    return "" if made.config.root == "plait-data" else f" root={made.config.root}"
