"""One stage at work: its tasks, the actors that it has now, and what becomes of each task (see `fleet.py`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.actors import Worker
from infra.allot import Demand, Size
from infra.blame import TOO_LATE, Shard, Task, after_death, after_hang
from infra.types import RunError

POLL_S = 2.0
IDLE_S = 0.05
HANG_GRACE_S = 120.0
"""Beyond the deadlines of all its rows, how long a task may be silent: a call that never lets go of the interpreter
lock cannot be timed from inside its process."""
SETUP_TRIES = 3
SETUP_DEATHS = 8
"""Actors in a row that may die in `setup` before the stage is given up."""
PREPARED_S = 2.0
NOTICE_S = 20.0


@dataclass(frozen=True)
class Share:
    """How many actors of which size a stage may have."""

    size: Size = field(default_factory=Size)
    least: int = 1
    most: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Watch:
    """What the driver wants to hear of a stage while it works, each in the stage's own thread."""

    on_shard: Callable[[int, list[dict[str, Any]]], None]
    """A shard has ended: its number and the results of its parts."""
    on_log: Callable[[Mapping[str, Any]], None]
    """What a task printed and logged (`infra/capture.py`)."""
    notice: Callable[[str], None]
    """Nothing goes on for want of room on the machines."""
    check: Callable[[], None]
    """Called every POLL_S at least; raises to stop the stage."""
    on_actors: Callable[[int], None]
    """How many actors the stage has, every POLL_S at least."""
    on_requests: Callable[[Mapping[str, int]], None]
    """What a task asked of stores (`infra/requests.py`)."""


@dataclass(frozen=True)
class Todo:
    """The shards of a stage by number; their units are asked for when one is handed out."""

    shards: Sequence[int]
    units: Callable[[int], Sequence[Any]]


class Actors(Protocol):
    """What a stage asks of the fleet."""

    stopped: BaseException | None

    def adjust(self, lane: Lane) -> tuple[int, list[tuple[Any, bool]]]:
        """How many actors this stage may have now, and those that it gets at once, each with whether it is new."""
        ...

    def give_back(self, size: Size, host: Any) -> None:
        """A stage needs this actor no more."""
        ...

    def must_answer(self) -> None:
        """Raise where Ray's head is lost."""
        ...


class Lane:
    """One stage's tasks and the actors that it has now; used by one thread, looked at by all."""

    def __init__(
        self,
        fleet: Actors,
        ray: Any,
        worker: Worker,
        todo: Todo,
        share: Share,
        watch: Watch,
    ) -> None:
        self.fleet, self.ray, self.worker, self.share, self.watch = fleet, ray, worker, share, watch
        self.shared = ray.put(worker)
        self.todo, self.ahead = todo, deque(todo.shards)
        self.queue: deque[Task] = deque()
        self.state: dict[int, Shard] = {}
        self.hosts: set[Any] = set()
        self.idle: deque[Any] = deque()
        self.preparing: dict[Any, tuple[Any, bool]] = {}
        self.running: dict[Any, tuple[Task, Any, float]] = {}
        self.undone: dict[int, str] = {}
        self.setups_failed = 0
        self.moved = time.monotonic()

    def demand(self) -> Demand:
        """What this stage could use now."""
        share = self.share
        backlog = len(self.ahead) + len(self.queue) + len(self.running)
        return Demand(share.size, share.least, share.most, backlog, share.rank)

    def num_born(self) -> int:
        """How many of its actors have a place on a machine for all that is known: one whose node was lost meanwhile, or
        whose room another driver took, may be begun and never come, and must keep nobody from working."""
        return len(self.hosts) - sum(is_new for _, is_new in self.preparing.values())

    def work(self) -> list[str]:
        """Until every task has ended."""
        while self.ahead or self.queue or self.running:
            if self.fleet.stopped is not None:
                raise self.fleet.stopped
            self.watch.check()
            self._adjust()
            self.watch.on_actors(len(self.hosts))
            while self.idle and (task := self._task()):
                host = self.idle.popleft()
                self.running[host.run.remote(task)] = (task, host, time.monotonic())
            if (ended := self._next()) is None:
                continue
            task, answer = ended
            if "transient" in answer:
                self.undone[task.shard] = answer["transient"]
            elif "parts" in answer:
                parts: list[Task] = list(answer["parts"])
                self.state[task.shard].open_parts += len(parts) - 1
                self.queue.extendleft(parts)
            elif self.state[task.shard].ends_with(answer["result"]):
                self.watch.on_shard(task.shard, self.state[task.shard].results)
        self._collect_prepared()
        return list(self.undone.values())

    def _task(self) -> Task | None:
        """The next task: parts of shards that fell apart first; nothing more of a shard that stays undone."""
        while self.queue:
            if (task := self.queue.popleft()).shard not in self.undone:
                return task
        if not self.ahead:
            return None
        shard = self.ahead.popleft()
        self.state[shard] = Shard()
        return Task(shard, tuple(self.todo.units(shard)))

    def _adjust(self) -> None:
        allowed, new = self.fleet.adjust(self)
        for host, is_new in new:
            self.preparing[host.prepare.remote(self.shared)] = host, is_new
        while self.idle and self.num_born() > allowed:
            host = self.idle.popleft()
            self.hosts.discard(host)
            self.fleet.give_back(self.share.size, host)

    def _next(self) -> tuple[Task, dict[str, Any]] | None:
        """The next task that ended or is far too late, with its answer; None where only an actor has become ready."""
        waiting = [*self.running, *self.preparing]
        if not self.running and time.monotonic() - self.moved > NOTICE_S:
            self.watch.notice(f"waiting for an actor with {self.share.size}")
            self.moved = time.monotonic()
        if not waiting:
            time.sleep(IDLE_S)  # until another stage gives an actor back
            return None
        done, _ = self.ray.wait(waiting, num_returns=1, timeout=POLL_S)
        if done and done[0] in self.preparing:
            self._prepared(done[0])
            return None
        late = [ref for ref, (task, _, since) in self.running.items() if _is_late(self.worker, task, since)]
        if not done and not late:
            self.fleet.must_answer()
            return None
        self.moved = time.monotonic()
        ref = (done or late)[0]
        task, host, _ = self.running.pop(ref)
        if not done:
            self._lose(host)
            return task, {"parts": after_death(task, TOO_LATE)}
        return task, self._answer(ref, task, host)

    def _prepared(self, ref: Any) -> None:
        """An actor is ready, or could not be made ready: after some tries what is left stays undone."""
        host, is_new = self.preparing.pop(ref)
        try:
            answer = self.ray.get(ref)
            self._hear(answer)
            sentence: str | None = answer.get("transient")
        except self.ray.exceptions.RayActorError as error:
            self.fleet.must_answer()
            self._lose(host)
            self.setups_failed += is_new and not _is_innocent(error)
            if self.setups_failed >= SETUP_DEATHS:
                raise RunError(f"{self.setups_failed} workers in a row died while they were set up, before they touched a row: look at the stage's `setup` and the machine's memory, then run the same command again") from error  # fmt: skip  # noqa: E501
            return
        except self.ray.exceptions.RayTaskError as error:
            raise _outside_any_row(error) from error
        if sentence is None:
            self.idle.append(host)
            self.setups_failed = 0
            return
        self._lose(host)
        self.setups_failed += 1
        if self.setups_failed >= SETUP_TRIES and not (self.idle or self.running or self.preparing):
            self.undone |= dict.fromkeys([*self.ahead, *(task.shard for task in self.queue)], sentence)
            self.queue.clear()
            self.ahead.clear()

    def _collect_prepared(self) -> None:
        """Actors that were made ready for nothing can still serve the next stage."""
        if self.preparing:
            refs = list(self.preparing)
            for ref in self.ray.wait(refs, num_returns=len(refs), timeout=PREPARED_S)[0]:
                self._prepared(ref)

    def _answer(self, ref: Any, task: Task, host: Any) -> dict[str, Any]:
        """The task's answer; a dead or hung actor is given up, and its task comes back as parts."""
        exceptions = self.ray.exceptions
        try:
            answer = self.ray.get(ref)
        except exceptions.OutOfMemoryError:
            self._lose(host)
            return {"transient": "Ray killed a worker for memory: lower cluster.workers, then run again"}
        except exceptions.RayActorError as error:
            self.fleet.must_answer()
            self._lose(host)
            return {"parts": [task] if _is_innocent(error) else after_death(task)}
        except exceptions.RayTaskError as error:
            raise _outside_any_row(error) from error
        self._hear(answer)
        if "hung" in answer:
            self._lose(host)
            return {"parts": after_hang(task, answer["hung"])}
        self.idle.append(host)
        return answer

    def _hear(self, answer: Mapping[str, Any]) -> None:
        self.watch.on_log(answer["log"])
        self.watch.on_requests(answer["requests"])

    def _lose(self, host: Any) -> None:
        self.ray.kill(host)
        self.hosts.discard(host)


def _outside_any_row(error: Any) -> RunError:
    return RunError(f"a worker failed outside any row ({error.cause}): fix the cause, then run the same command again")


def _is_innocent(error: Any) -> bool:
    """Whether the actor died because its node did: then nothing that it worked on is to blame."""
    return error.preempted or "node has died" in str(error)


def _is_late(worker: Worker, task: Task, since: float) -> bool:
    return time.monotonic() - since > worker.deadline_s * len(task.units) + HANG_GRACE_S
