"""What runs inside an actor: tasks of any worker with setup(), load(), process() and finish(), row by row if need be.

With `fleet.py`, which starts the actors and sees them die, this is the one retry point of plait. Here:
    process raises             the batch is tried row by row; a row that raises twice is handed back as a BadRow
    process raises Transient   the shard is given up for this run: the world is at fault, no row is
    process hangs              the positions of that batch are the answer
Data never passes through here: a task is a description of rows, a result is what `finish` returns.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from infra.blame import KILLED, Task
from infra.capture import capture
from infra.requests import counted
from infra.traces import error_class, trace_digest
from infra.types import BadRow, Filtered, Outcome, Row, RunError, TransientError, UserError
from infra.world import is_world, world_failed

RAISES_BEFORE_BLAME = 2
MIN_WAIT_S = 0.01
OUTCOMES: tuple[type, ...] = (list, Filtered, BadRow)


class Worker(Protocol):
    """What runs inside an actor. It is pickled once per actor."""

    batch_rows: int
    deadline_s: float

    def setup(self) -> None:
        """Once per actor."""
        ...

    def close(self) -> None:
        """When the actor turns to other work, or ends."""
        ...

    def load(self, units: Any) -> list[Row]:
        """Read the rows of these units."""
        ...

    def process(self, rows: Sequence[Row]) -> Sequence[Outcome]:
        """One outcome per row."""
        ...

    def finish(self, task: Task, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Write what was made; the small result that travels back."""
        ...


@dataclass(frozen=True)
class Failure:
    """Why a row was given up: kept on the BadRow so that the worker can write it to the rest."""

    error: str
    attempts: int
    error_class: str
    trace_digest: str


class WorkerDied(BadRow):
    """A row whose worker process died each time."""


class DeadlinePassed(BadRow):
    """A row that ran too long each time."""


class Host:
    """The actor: holds one worker at a time and runs tasks on it."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.lane = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Let the worker clean up after itself."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def warm(self, needs: object) -> None:
        """Nothing: to be called with something is to have imported it."""

    def prepare(self, worker: Worker) -> dict[str, Any]:
        """Turn to a worker's tasks: {}, or {"transient": sentence}; and "log" and "requests" (see `run`)."""
        with capture() as said, counted() as asked:
            answer = self._prepared(worker)
        return {**answer, "log": said.report(), "requests": dict(asked)}

    def _prepared(self, worker: Worker) -> dict[str, Any]:
        try:
            self.close()
            worker.setup()
        except TransientError as error:
            return {"transient": str(error)}
        self.worker = worker
        return {}

    def run(self, task: Task) -> dict[str, Any]:
        """Run a task: {"result"}, or {"hung": positions}, or {"transient": sentence}; and "log", what was said, and
        "requests", what was asked of stores."""
        with capture() as said, counted() as asked:
            answer = self._answer(task)
        return {**answer, "log": said.report(), "requests": dict(asked)}

    def _answer(self, task: Task) -> dict[str, Any]:
        assert self.worker is not None
        try:
            return self._run(self.worker, task)
        except TransientError as error:
            return {"transient": str(error)}
        except OSError as error:  # of loading or writing rows: one of `process` is a row's outcome
            if not is_world(error):
                raise
            return {"transient": str(world_failed(error))}

    def _run(self, worker: Worker, task: Task) -> dict[str, Any]:
        rows = worker.load(task.units)
        outcomes: list[Outcome] = []
        if task.blame:
            kind = WorkerDied if task.blame == KILLED else DeadlinePassed
            outcomes = [_blamed(kind(task.blame), task.deaths) for _ in rows]
        else:
            work = _Work(worker, rows, 1 if task.suspect else worker.batch_rows)
            future = self.lane.submit(work.all)
            while not future.done():
                batch, left_s = work.now, work.left_s()
                if left_s <= 0 and work.now is batch:
                    return {"hung": list(batch)}
                wait([future], max(left_s, MIN_WAIT_S))
            outcomes = future.result()
        return {"result": worker.finish(task, rows, outcomes)}


class _Work:
    """The batches of a task, worked off in a thread of their own; which one is at work, and until when it may be."""

    def __init__(self, worker: Worker, rows: Sequence[Row], batch_rows: int) -> None:
        self.worker, self.rows, self.batch_rows = worker, rows, batch_rows
        self.now, self.since = range(0), time.monotonic()

    def all(self) -> list[Outcome]:
        """One outcome per row."""
        outcomes: list[Outcome] = []
        for start in range(0, len(self.rows), self.batch_rows):
            batch = self.rows[start : start + self.batch_rows]
            self.since, self.now = time.monotonic(), range(start, start + len(batch))
            outcomes += _attempt(self.worker, batch)
        return outcomes

    def left_s(self) -> float:
        """Seconds until the batch at work is over its deadline."""
        return self.since + self.worker.deadline_s * max(1, len(self.now)) - time.monotonic()


def _attempt(worker: Worker, batch: Sequence[Row]) -> list[Outcome]:
    """Process a batch; on an exception row by row, each row twice, before a row is blamed."""
    try:
        return _checked(worker.process(batch), batch)
    except (TransientError, RunError, UserError):  # of the world or of the settings: no row is at fault
        raise
    except Exception as error:  # noqa: BLE001 - the one retry point: whatever a stage raises is a row's outcome
        _spare_the_row(error)
        if len(batch) == 1:
            return [_again(worker, batch[0], error)]
    return [outcome for row in batch for outcome in _attempt(worker, [row])]


def _again(worker: Worker, row: Row, first: Exception) -> Outcome:
    if isinstance(first, BadRow):
        return _blamed(first, 1)
    try:
        return _checked(worker.process([row]), [row])[0]
    except (TransientError, RunError, UserError):  # of the world or of the settings: no row is at fault
        raise
    except Exception as error:  # noqa: BLE001 - see _attempt
        _spare_the_row(error)
        bad = error if isinstance(error, BadRow) else BadRow(f"{type(error).__name__}: {error}")
        return _blamed(bad, RAISES_BEFORE_BLAME, error)


def _spare_the_row(error: Exception) -> None:
    """Raise TransientError where the world is at fault: a lost connection, a timeout, no memory, no disk."""
    if isinstance(error, MemoryError):
        raise TransientError("a worker ran out of memory: lower cluster.workers, then run again") from error
    if is_world(error):
        raise TransientError(f"{type(error).__name__}: {error}") from error


def _checked(outcomes: Sequence[Outcome], batch: Sequence[Row]) -> list[Outcome]:
    if len(outcomes) != len(batch):
        raise RunError(f"process returned {len(outcomes)} outcomes for {len(batch)} rows: it must return one per row")
    return [outcome if type(outcome) is list else _checked_one(outcome) for outcome in outcomes]


def _checked_one(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, OUTCOMES):
        raise TypeError(
            f"process returned a {type(outcome).__name__}: an outcome is a list of rows, Filtered or BadRow"
        )
    if isinstance(outcome, BadRow) and not hasattr(outcome, "failure"):
        return _blamed(outcome, 1)
    return outcome


def _blamed(bad: BadRow, attempts: int, cause: Exception | None = None) -> BadRow:
    """The bad row with what is known of its fault; the traceback is that of the cause."""
    error = "".join(traceback.format_exception(cause, chain=False)) if cause else str(bad)
    bad.failure = Failure(error, attempts, error_class(cause or bad), trace_digest(cause or bad))  # type: ignore[attr-defined]
    return bad
