"""`evaluate`: score checkpoints, once, or for ever."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.types import PlaitError, StoppedError, UserError
from pipelines.ask import Ask
from pipelines.cli import show
from pipelines.cli.cron import emitted
from pipelines.cli.going import split, stopped_by_signals, unheard
from pipelines.cli.world import planner_of, record, services_of, stop_ray
from pipelines.evaluate import is_called

LOCK = "evaluate"


@dataclass(frozen=True)
class When:
    """The flags that say how often."""

    watch: bool = False
    once: bool = False
    every: str | None = None
    cron: str | None = None
    """Only print what somebody else's clock wants: k8s or crontab."""
    image: str = "registry.example/plait:cpu"
    """In the manifest."""

    def __post_init__(self) -> None:
        if self.watch and self.once:
            raise UserError("--once and --watch exclude each other: give one, or none for once")
        if self.every and not (self.watch or self.cron):
            raise UserError("--every goes with --watch or --emit-cron: add one, or leave --every out")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asked for, beside the configuration."""

    target: str | None = None
    """A checkpoint; none: all of the root."""
    budget: int | None = None
    """Most new checkpoints; unset: what the configuration says."""


def evaluate(
    arguments: Sequence[str], when: When, wish: Wish, address: str | None, page: str | None, as_json: bool
) -> None:
    """The verb."""
    target, overrides = split(arguments, "checkpoint")
    wish = replace(wish, target=target)
    overrides = [*overrides, *([f"evaluation.every={when.every}"] if when.every else [])]
    if when.cron:
        show.out(False).file.write(emitted(when.cron, _every_s(overrides), overrides, when.image, address))
        return
    if page and not Path(page).expanduser().resolve().parent.is_dir():  # before hours of work
        raise UserError(f"--page {page} lies in no folder that is there: make the folder, or give another path")
    overrides += [f"cluster.address={address}"] if address else []
    if when.watch:
        watch(wish, overrides, page)
    else:
        once(wish, overrides, page, as_json)


def once(wish: Wish, overrides: Sequence[str], page: str | None, as_json: bool) -> None:
    """Score what has no score yet, and show what was found."""
    made, result = _tick(wish, overrides)
    rows = _scores(made)
    _write_page(page, rows)
    if wish.target:
        rows = [row for row in rows if is_called(row["checkpoint"], row["training"], row["step"], wish.target)]
    _show(rows, result)
    if as_json:
        show.emit({"ok": True, "run": result, "scores": rows})
    if wish.target and any(row["outcome"] == "fail" for row in rows):
        failed = ", ".join(row["score"] for row in rows if row["outcome"] == "fail")
        raise PlaitError(f"{wish.target} fails the gate of {failed}: see the table above, or scores.json in MLflow")


def watch(wish: Wish, overrides: Sequence[str], page: str | None) -> None:
    """Again and again, until it is stopped. A look that fails is told, and the next one tries again."""
    wait_s = _every_s(overrides)
    with contextlib.suppress(KeyboardInterrupt):
        _look_until_stopped(wish, overrides, page, wait_s)
    show.err.print("Stopped watching; what is scored stays, and the same command goes on.", markup=False)


def _look_until_stopped(wish: Wish, overrides: Sequence[str], page: str | None, wait_s: float) -> None:
    while True:
        began = time.monotonic()
        try:
            made, result = _tick(wish, overrides)
            if result is not None:
                rows = _scores(made)
                _write_page(page, rows)
                _show(rows, result)
                if result.get("stopped"):  # asked when nothing was left to stop but the watching
                    return
        except (UserError, StoppedError):
            raise
        except PlaitError as error:
            show.emit_error(str(error), False)
        time.sleep(max(0.0, wait_s - (time.monotonic() - began)))


def _every_s(overrides: Sequence[str]) -> float:
    """Seconds between two looks, as the configuration has them."""
    from pipelines.cli.compose import compose

    return compose(["pipeline=evaluate", *overrides]).evaluation.every_s()


def _tick(wish: Wish, overrides: Sequence[str]) -> tuple[Any, dict[str, Any] | None]:
    """One look: the run that scored, as its JSON, or None where nothing was left to do.

    One at a time in a root: whoever comes second waits, and then finds the work done.
    """
    from infra.cluster import checked, is_job_server
    from infra.ledger import Claim, Ledger
    from pipelines.cli.compose import setup

    made = setup(["pipeline=evaluate", *overrides])
    address = made.config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address and is_job_server(address):
        return made, _as_a_job(made, wish, address)
    checked(address)
    claim = Claim(Ledger(made.root).folder("locks", LOCK), f"evaluate-{os.getpid()}")
    told: list[str] = []

    def waiting(holder: dict[str, Any]) -> None:
        if holder["run_id"] not in told:
            told.append(holder["run_id"])
            show.err.print(f"waiting for the evaluation of process {holder['pid']} on {holder['host']}", markup=False)

    claim.wait(on_wait=waiting)
    try:
        return made, _run(made, wish)
    finally:
        claim.release()


def _as_a_job(made: Any, wish: Wish, address: str) -> dict[str, Any] | None:
    """The look as a Ray job, where the root seen from here has something to score: one at a time there too."""
    from pipelines.cli.submit import scored_by

    return None if _asked(made, found_in(made), wish) is None else scored_by(made, address)


def _asked(made: Any, found: Sequence[Any], wish: Wish) -> Any:
    """The planner of what is to be scored of these checkpoints; None where nothing is."""
    from pipelines.evaluate import with_listed

    graph = with_listed(made.graph, listed_for(made, found, wish))
    if graph is None:
        return None
    planner = planner_of(replace(made, graph=graph), Ask(), None)
    return None if all(plan.state == "fresh" for plan in planner.plan_all()) else planner


def _run(made: Any, wish: Wish) -> dict[str, Any] | None:
    from infra.telemetry import evaluating
    from pipelines.evaluate import lags
    from pipelines.run import Runner

    found = found_in(made)
    planner = _asked(made, found, wish)
    if planner is None:
        return None
    made = replace(made, graph=planner.graph)
    show.keep_stdout()
    progress = show.ConsoleProgress()
    try:
        services = services_of(made, None, progress)
        runner = Runner(planner, services, planner.ask, record())
        services.ray = stopped_by_signals(runner.open, progress, services.ray)
        with evaluating(lags(found, {(row["training"], row["step"]) for row in _scores(made)})):
            result = runner.run().to_json()
    finally:
        progress.stop()
        stop_ray()
        unheard()  # behind Ray, which takes them too
    return result | {"stopped": runner.open.stopped}


def listed_for(made: Any, found: Sequence[Any], wish: Wish) -> tuple[Any, ...]:
    """What has rows already, and what is new: the one that is wanted, or the newest within the budget."""
    from infra.store import Store
    from pipelines.evaluate import scored

    before = scored(Store(made.root))
    known = {one.files_sha256 for one in before}
    new = [one for one in found if one.files_sha256 not in known]
    if wish.target:
        matching = [one for one in found if is_called(one.checkpoint, one.training, one.step, wish.target)]
        if not matching:
            some = ", ".join(one.label for one in found[-4:]) or "none: `plait run` trains them"
            raise UserError(f"{wish.target!r} is no checkpoint of {made.root.uri}: the last ones are {some}; give a name such as {found[-1].short if found else 'model'}")  # fmt: skip  # noqa: E501
        new = [one for one in new if one in matching]
    budget = wish.budget or made.config.evaluation.budget
    if not wish.target and budget is not None:
        new = new[-budget:]
    return tuple(sorted([*before, *new], key=lambda one: (one.begun, one.training, one.step)))


def found_in(made: Any) -> list[Any]:
    """The checkpoints that lie in the root."""
    from infra.store import Store
    from pipelines.checkpoints import Checkpoints
    from pipelines.evaluate import listed

    return [listed(one) for one in Checkpoints(Store(made.root)).all()]


def _scores(made: Any) -> list[dict[str, Any]]:
    """The rows of `marks` as they stand."""
    from infra.store import Store
    from pipelines.evaluate import rows_of

    columns = ("checkpoint", "training", "step", "suite", "score", "value", "low", "high", "num_questions", "num_judged", "num_wanted", "judge", "outcome", "reason", "champion")  # fmt: skip  # noqa: E501
    return rows_of(Store(made.root), "marks", columns)


def _show(rows: Sequence[dict[str, Any]], result: dict[str, Any] | None) -> None:
    """The newest checkpoint's scores, and where to look."""
    console = show.out(False)
    if result is None:
        console.print("Nothing to do: every checkpoint has its scores.", markup=False)
    if not rows:
        return
    last = rows[-1]["training"], rows[-1]["step"]
    shown = [row for row in rows if (row["training"], row["step"]) == last]
    lines = [
        [row["score"], _number(row["value"]), f"{_number(row['low'])} to {_number(row['high'])}"]
        + [str(row["num_questions"]), row["outcome"] or "-"]
        for row in shown
    ]
    title = f"{last[0][:8]} step {last[1]}, judged by {shown[0]['judge']}"
    console.print(show.table(title, ("score", "value", "95 %", "questions", "gate"), lines, left=1))
    champion = [row for row in rows if row["champion"]]
    if champion:
        console.print(f"Champion    {champion[-1]['training'][:8]} step {champion[-1]['step']}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_page(path: str | None, rows: Sequence[dict[str, Any]]) -> None:
    if path:
        from dashboards.scores import page

        Path(path).expanduser().write_text(page(rows))
