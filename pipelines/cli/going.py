"""`logs` and `cancel`: what a run says, and how it is stopped; by the bucket from anywhere, by signals from here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from infra.types import UserError
from pipelines.cli import show

POLL_S = 1.0
PLAIN = ("info", "out")


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and overrides: `name=value`, or `~name` to take one out."""
    names = [a for a in arguments if "=" not in a and not a.startswith("~")]
    return names, [a for a in arguments if a not in names]


def split(arguments: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """A leading name, then overrides."""
    names, overrides = parted(arguments)
    if len(names) > 1:
        raise UserError(f"{' '.join(names)!r} is more than one {what}: give one")
    return (names[0] if names else None), overrides


def logs(arguments: Sequence[str], run: str | None, follow: bool, as_json: bool) -> None:
    """Print the log of a run, all of it or one stage's; with `follow` until the run ends."""
    from infra.runs import Runs
    from pipelines.cli.compose import setup

    stage, overrides = split(arguments, "stage")
    made = setup(overrides)
    if stage is not None:
        made.graph.node(stage)
    runs = Runs(made.root)
    run_id = runs.pick(run)
    console = show.out(as_json)
    kept: list[dict[str, Any]] = []
    chunk, living = 0, True
    while living:
        living = follow and runs.is_living(run_id)
        lines, chunk = runs.log(run_id, chunk)
        wanted = [line for line in lines if stage in (None, line["stage"])]
        kept += wanted if as_json or not kept else []
        for line in wanted:
            _show(console, line)
        if living:
            time.sleep(POLL_S)
    lost = runs.killed()
    if lost is not None and lost["run_id"] == run_id:
        console.print(show.killed(lost), markup=False, soft_wrap=True)
    if not kept:
        whose = f"{stage} said nothing in run {run_id}" if stage else f"run {run_id} has left no log"
        console.print(f"{whose} (a log is written every few seconds).", markup=False)
    if as_json:
        state = "running" if runs.is_living(run_id) else "ended" if runs.has_ended(run_id) else "killed"
        show.emit({"run_id": run_id, "state": state, "lines": kept})


def _show(console: Any, line: dict[str, Any]) -> None:
    where = f"{line['stage'] or '-':<10} {line['worker']}"
    level = "" if line["level"] in PLAIN else f" {line['level']}:"
    console.print(f"{line['at'][11:19]} {where}{level} {line['text']}", markup=False, soft_wrap=True)


def cancel(arguments: Sequence[str], as_json: bool) -> None:
    """Put the wish that a run stops; which run need not be said where only one goes on."""
    from infra.runs import Runs
    from pipelines.cli.compose import setup

    name, overrides = split(arguments, "run")
    runs = Runs(setup(overrides).root)
    going = {run["run_id"]: run for run in runs.going()}
    if name is not None:
        run_id = runs.pick(name)
        if run_id not in going:
            raise UserError(f"run {run_id} is not going on: {_listed(going)}")
    elif len(going) == 1:
        run_id = next(iter(going))
    else:
        raise UserError(f"nothing to cancel under {runs.bucket.uri}: {_listed(going)}" if not going else f"{len(going)} runs are going on, give one: {_listed(going)}")  # fmt: skip  # noqa: E501
    runs.ask_to_stop(run_id)
    run = going[run_id]
    show.out(as_json).print(f"Asked run {run_id} {show.place(run)} to stop; `plait logs --follow` shows how it ends.", markup=False, soft_wrap=True)  # fmt: skip  # noqa: E501
    if as_json:
        show.emit({"run_id": run_id, "host": run["host"], "pid": run["pid"], "asked": True})


def _listed(going: dict[str, Any]) -> str:
    told = [f"{r['run_id']} (on {r['host']}, since {r['at'][:19]})" for r in going.values()]
    return ", ".join(told) or "no run is going on"


def stopped_by_signals(run: Any, progress: Any, ray: Callable[[], Any]) -> Callable[[], Any]:
    """SIGTERM and Ctrl-C ask the run to stop as `plait cancel` does; a second one stops it at once.

    Ray takes the signals over when it starts, so the connection that comes back here takes them again.
    """

    def handle(number: int, _: Any) -> None:
        if run.stopping():
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        run.stop(f"stopped by {name}")
        progress.note(f"{name}: stopping at the next safe point; once more stops at once")

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def connect() -> Any:
        found = ray()
        listen()
        return found

    listen()
    return connect


def unheard() -> None:
    """SIGTERM and Ctrl-C end this process again, as ever: the run that heard them has ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
