"""A pool of Ray actors for anything with setup(), load(), process() and finish().

The one retry point of plait. What can happen to a shard, and what then:
    process raises             the batch is tried row by row; a row that raises twice is handed back as a BadRow
    process raises Transient   the shard is given up for this run: the world is at fault, no row is
    process hangs              the rows of that batch are isolated, the actor is replaced
    the actor dies             once more; then the shard is halved, down to the row that kills three times, alone
Data never passes through here: a task is a description of rows, a result is what `finish` returns.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from infra.cluster import answers
from infra.traces import error_class, trace_digest
from infra.types import BadRow, Filtered, Outcome, Row, RunError, TransientError, UserError
from infra.world import is_world, world_failed

CLOSE_S = 5.0
POLL_S = 2.0
LOST_S = 10.0
"""How long Ray's head may refuse connections before it counts as lost."""
HANG_GRACE_S = 120.0
"""Beyond the deadlines of all its rows, how long a task may be silent: a call that never lets go of the interpreter
lock cannot be timed from inside its process."""
DEATHS_BEFORE_HALVING = 2
DEATHS_BEFORE_BLAME = 3
"""Times that a row must kill its worker while it is alone there: any process may die once by bad luck."""
DEATHS_BEFORE_GIVING_UP = 8
RAISES_BEFORE_BLAME = 2
KILLED = "it killed its worker process each time it was tried"
TOO_LATE = "it ran past the deadline each time it was tried"


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

    def finish(self, units: Any, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Write what was made; the small result that travels back."""
        ...


@dataclass(frozen=True)
class Task:
    """A shard, or a part of one while a guilty row is sought."""

    shard: int
    units: tuple[Any, ...]
    deaths: int = 0
    suspect: bool = False
    """Whether the units are isolated because one of them killed or hung an actor."""
    blame: str | None = None
    """Set on a single unit that did it again: it is not processed any more, only written down."""


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


@dataclass
class _Shard:
    open_parts: int = 1
    results: list[dict[str, Any]] = field(default_factory=list)

    def ends_with(self, result: dict[str, Any]) -> bool:
        """Take the result of one part; whether it was the last one."""
        self.results.append(result)
        self.open_parts -= 1
        return self.open_parts == 0


class Host:
    """The actor: holds one worker at a time and runs tasks on it."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.worker: Worker | None = None
        self.lane = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Let the worker clean up after itself."""
        if self.worker is not None:
            self.worker.close()
            self.worker, self.token = None, None

    def prepare(self, token: str, worker: Worker) -> None:
        """Set the worker up unless it is; a process that dies in here has touched no row."""
        if self.token != token:
            self.close()
            worker.setup()
            self.worker, self.token = worker, token

    def run(self, token: str, worker: Worker, task: Task) -> dict[str, Any]:
        """Run a task: {"result"}, or {"hung": positions}, or {"transient": sentence}."""
        try:
            self.prepare(token, worker)
            assert self.worker is not None
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
        step = 1 if task.suspect else worker.batch_rows
        for start in range(len(outcomes), len(rows), step):
            batch = rows[start : start + step]
            future = self.lane.submit(_attempt, worker, batch)
            try:
                outcomes += future.result(worker.deadline_s * len(batch))
            except FutureTimeout:
                return {"hung": list(range(start, start + len(batch)))}
        return {"result": worker.finish(task.units, rows, outcomes)}


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
    for outcome in outcomes:
        if not isinstance(outcome, list | Filtered | BadRow):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"process returned a {type(outcome).__name__}: an outcome is a list of rows, Filtered or BadRow"
            )
    return [_blamed(o, 1) if isinstance(o, BadRow) and not hasattr(o, "failure") else o for o in outcomes]


def _blamed(bad: BadRow, attempts: int, cause: Exception | None = None) -> BadRow:
    """The bad row with what is known of its fault; the traceback is that of the cause."""
    error = "".join(traceback.format_exception(cause, chain=False)) if cause else str(bad)
    bad.failure = Failure(error, attempts, error_class(cause or bad), trace_digest(cause or bad))  # type: ignore[attr-defined]
    return bad


class Pool:
    """Actors of one size, kept between stages, so that a small machine pays for their start once."""

    def __init__(self, num_cpus: float = 1, num_gpus: float = 0) -> None:
        import ray

        self._ray: Any = ray
        self.size = 1  # set by each stage that uses the pool: how many actors it may have
        self._make = lambda: ray.remote(Host).options(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0).remote()
        self.hosts: list[Any] = []
        self._address: str = ray.get_runtime_context().gcs_address
        self._prepared: dict[Any, Any] = {}
        self._stillborn = 0  # actors in a row that died before they touched a row

    def map(
        self,
        token: str,
        worker: Worker,
        shards: Iterable[tuple[int, Sequence[Any]]],
        on_shard: Callable[[int, list[dict[str, Any]]], None],
    ) -> list[str]:
        """Run every shard; `on_shard(number, results)` as each ends. Returns the sentences of transient failures."""
        queue = deque(Task(number, tuple(units)) for number, units in shards)
        state = {task.shard: _Shard() for task in queue}
        sentences: dict[int, str] = {}
        running: dict[Any, tuple[Task, Any, float]] = {}
        shared = self._ray.put(worker)
        while len(self.hosts) < min(self.size, len(queue)):
            self.hosts.append(self._make())
        idle = deque(self.hosts[: self.size])
        while queue or running:
            while queue and idle:
                task = queue.popleft()
                if task.shard not in sentences:
                    host = idle.popleft()
                    self._prepared[host] = host.prepare.remote(token, shared)
                    running[host.run.remote(token, shared, task)] = (task, host, time.monotonic())
            if (ended := self._next(worker, running)) is None:
                continue
            task, host, answer = ended
            idle.append(host)
            if "transient" in answer:
                sentences[task.shard] = answer["transient"]
            elif "parts" in answer:
                parts: list[Task] = list(answer["parts"])
                state[task.shard].open_parts += len(parts) - 1
                queue.extendleft(parts)
            elif state[task.shard].ends_with(answer["result"]):
                on_shard(task.shard, state[task.shard].results)
        return list(sentences.values())

    def _next(self, worker: Worker, running: dict[Any, tuple[Task, Any, float]]) -> tuple[Task, Any, Any] | None:
        """The next task that ended or is far too late: task, a host that is free now, its answer."""
        if not running:
            return None
        done, _ = self._ray.wait(list(running), num_returns=1, timeout=POLL_S)
        late = [ref for ref, (task, _, since) in running.items() if _is_late(worker, task, since)]
        if not done and not late:
            self._must_answer()
            return None
        ready = (done or late)[0]
        task, host, _ = running.pop(ready)
        if done:
            return task, *self._answer(ready, task, host)
        return task, self._replace(host), {"parts": _after_death(task, TOO_LATE)}

    def _answer(self, ready: Any, task: Task, host: Any) -> tuple[Any, dict[str, Any]]:
        """The task's answer; a dead or hung actor is replaced, and its task comes back as parts."""
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(ready)
        except exceptions.OutOfMemoryError:
            return self._replace(host), {
                "transient": "Ray killed a worker for memory: lower cluster.workers, then run again"
            }
        except exceptions.RayActorError:
            self._must_answer()
            parts = _after_death(task) if self._began(host) else iter((task,))
            return self._replace(host), {"parts": parts}
        except exceptions.RayTaskError as error:
            raise RunError(f"a worker failed outside any row ({error.cause}): fix the cause, then run the same command again") from error  # fmt: skip  # noqa: E501
        self._stillborn = 0
        if "hung" in answer:
            return self._replace(host), {"parts": _after_hang(task, answer["hung"])}
        return host, answer

    def _must_answer(self) -> None:
        """Raise where Ray's head has been away for LOST_S: Ray itself would wait a minute, and then end the process."""
        end = time.monotonic() + LOST_S
        while not answers(self._address):
            if time.monotonic() > end:
                self.hosts = []  # nobody is there to be closed
                raise RunError(f"Ray was lost at {self._address} in the middle of work; finished shards are kept: see that a Ray is up (cluster.address), then run the same command again")  # fmt: skip  # noqa: E501
            time.sleep(1.0)

    def _began(self, host: Any) -> bool:
        """Whether a dead actor had been set up, so that its death may be a row's fault."""
        try:
            self._ray.get(self._prepared[host])
        except self._ray.exceptions.RayActorError as error:
            self._stillborn += 1
            if self._stillborn >= DEATHS_BEFORE_GIVING_UP:
                raise RunError(f"{self._stillborn} workers in a row died while they were set up, before they touched a row: look at the stage's `setup` and the machine's memory, then run the same command again") from error  # fmt: skip  # noqa: E501
            return False
        self._stillborn = 0
        return True

    def _replace(self, host: Any) -> Any:
        self._prepared.pop(host, None)
        self._ray.kill(host)
        new = self._make()
        self.hosts[self.hosts.index(host)] = new
        return new

    def close(self) -> None:
        """Give the actors' CPUs and GPUs back."""
        if self.hosts:
            closing = [host.close.remote() for host in self.hosts]
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for host in self.hosts:
            self._ray.kill(host)
        self.hosts = []


def _is_late(worker: Worker, task: Task, since: float) -> bool:
    return time.monotonic() - since > worker.deadline_s * len(task.units) + HANG_GRACE_S


def _after_death(task: Task, blame: str = KILLED) -> Iterator[Task]:
    """The same again; then halves; a single unit that did it alone, time after time, is blamed."""
    deaths = task.deaths + 1
    if task.blame:
        if deaths >= DEATHS_BEFORE_GIVING_UP:
            raise RunError("a worker died while it wrote a quarantined row: look at the machine's memory and disk")
        yield replace(task, deaths=deaths)
    elif len(task.units) > 1:
        middle = len(task.units) // 2
        if not task.suspect and deaths < DEATHS_BEFORE_HALVING:
            yield replace(task, deaths=deaths)
            return
        for units in (task.units[:middle], task.units[middle:]):
            yield Task(task.shard, units, suspect=True)
    else:
        enough = deaths >= (DEATHS_BEFORE_BLAME if blame == KILLED else DEATHS_BEFORE_HALVING)
        yield replace(task, deaths=deaths, suspect=True, blame=blame if enough else None)


def _after_hang(task: Task, positions: Sequence[int]) -> Iterator[Task]:
    """The batch that hung is isolated row by row; the others go on without it."""
    hung = {task.units[p] for p in positions}
    if len(task.units) == 1:
        deaths = task.deaths + 1
        blame = TOO_LATE if deaths >= DEATHS_BEFORE_HALVING else None
        yield replace(task, deaths=deaths, suspect=True, blame=blame)
        return
    others = tuple(u for u in task.units if u not in hung)
    if others:
        yield replace(task, units=others)
    for unit in task.units:
        if unit in hung:
            yield Task(task.shard, (unit,), suspect=True)
