"""Ray actors, shared by all stages that work at the same time: they grow and shrink with each stage's backlog.

What can happen to a task beside what `actors.py` sees, and what then:
    the actor dies             once more; then the shard is halved, down to the row that kills
    its node dies              once more, as often as that happens: no row is at fault
    the actor hangs            the rows of that batch are isolated, the actor is replaced
    `setup` cannot be done     after eight tries in a row the stage's shards stay undone
`allot.py` says how many actors each stage may have; every stage looks at it in its own thread, whenever a task ends,
takes actors that are free and gives idle ones back. A running task is never interrupted for another stage.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.actors import Host, Worker
from infra.allot import Demand, Size, allot
from infra.blame import TOO_LATE, Shard, Task, after_death, after_hang
from infra.cluster import answers
from infra.types import RunError

CLOSE_S = 5.0
POLL_S = 2.0
IDLE_S = 0.05
CAPACITY_S = 10.0
HANG_GRACE_S = 120.0
"""Beyond the deadlines of all its rows, how long a task may be silent: a call that never lets go of the interpreter
lock cannot be timed from inside its process."""
SETUP_TRIES = 8
"""Actors in a row that may fail in `setup` before the stage is given up."""
LOST_S = 10.0
"""How long Ray's head may refuse connections before it counts as lost."""
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


class Fleet:
    """All actors of a run. Safe to use from several threads, one stage each."""

    def __init__(self, ray: Any, can_grow: bool = False) -> None:
        self._ray = ray
        self._can_grow = can_grow
        self._lock = threading.RLock()
        self._lanes: list[_Lane] = []
        self._free: list[tuple[Size, Any]] = []
        self._capacity: Mapping[str, float] = {}
        self._looked = float("-inf")
        self.stopped: BaseException | None = None
        self.is_lost = False
        self._head: str = ray.get_runtime_context().gcs_address
        self._allotted: tuple[Any, list[int]] = ((), [])

    def map(
        self,
        worker: Worker,
        shards: Iterable[tuple[int, Sequence[Any]]],
        share: Share,
        watch: Watch,
    ) -> list[str]:
        """Run every shard, and tell `watch` as each ends. Returns the sentences of transient failures."""
        lane = _Lane(self, self._ray, worker, shards, share, watch)
        self._refuse_what_never_fits(share.size)
        with self._lock:
            self._lanes.append(lane)
        try:
            return lane.work()
        finally:
            with self._lock:
                self._lanes.remove(lane)
            if not self.is_lost:
                with self._lock:
                    self._free += [(share.size, host) for host in lane.idle]
                for host in lane.hosts - set(lane.idle):
                    self._ray.kill(host)

    def release(self) -> None:
        """Stop the actors that no stage uses, so that a job stage or another driver has the machine."""
        with self._lock:
            hosts, self._free = [host for _, host in self._free], []
        if hosts:
            closing = [host.close.remote() for host in hosts]
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for host in hosts:
            self._ray.kill(host)

    def must_answer(self) -> None:
        """Raise where Ray's head has been away for LOST_S: Ray itself would wait a minute, and then end the process."""
        end = time.monotonic() + LOST_S
        while not answers(self._head):
            if time.monotonic() > end:
                self._free, self.is_lost = [], True  # nobody is there to be closed
                raise RunError(f"Ray was lost at {self._head} in the middle of work; finished shards are kept: see that a Ray is up (cluster.address), then run the same command again")  # fmt: skip  # noqa: E501
            time.sleep(1.0)

    def stop(self, why: BaseException) -> None:
        """End every stage that works now, with that error; finished shards are kept."""
        self.stopped = why

    def adjust(self, lane: _Lane) -> tuple[int, list[tuple[Any, bool]]]:
        """How many actors this stage may have now, and those that it gets at once, each with whether it is new."""
        with self._lock:
            capacity = self.capacity()
            demands = [other.demand() for other in self._lanes]
            asked = [(d.size, d.wanted, d.rank) for d in demands], capacity
            if asked != self._allotted[0]:
                self._allotted = asked, allot(demands, capacity)
            allowed = self._allotted[1][self._lanes.index(lane)]
            got: list[tuple[Any, bool]] = []
            while len(lane.hosts) < allowed and (host := self._host(lane.share.size)):
                lane.hosts.add(host[0])
                got.append(host)
            return allowed, got

    def give_back(self, size: Size, host: Any) -> None:
        """A stage needs this actor no more."""
        with self._lock:
            self._free.append((size, host))

    def capacity(self) -> Mapping[str, float]:
        """What the cluster has, looked at every few seconds; where it can grow it is told what would be of use."""
        if time.monotonic() - self._looked > CAPACITY_S:
            self._capacity, self._looked = self._ray.cluster_resources(), time.monotonic()
            demands = [lane.demand() for lane in self._lanes]
            if self._can_grow and demands:
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=[d.size.needs() for d in demands for _ in range(d.wanted)])
        return self._capacity

    def _host(self, size: Size) -> tuple[Any, bool] | None:
        """A free actor of that size, or a new one if there is room; free actors of other sizes make room."""
        for i, (other, host) in enumerate(self._free):
            if other == size:
                del self._free[i]
                return host, False
        while not self._has_room(size):
            if not self._free:
                return None
            self._ray.kill(self._free.pop(0)[1])
        options = {"num_cpus": size.cpus, "num_gpus": size.gpus, "resources": dict(size.resources) or None}
        return self._ray.remote(Host).options(**options, max_restarts=0).remote(), True

    def _has_room(self, size: Size) -> bool:
        used: dict[str, float] = {}
        for taken in [s for s, _ in self._free] + [lane.share.size for lane in self._lanes for _ in lane.hosts]:
            for name, need in taken.needs().items():
                used[name] = used.get(name, 0) + need
        capacity = self._capacity
        return all(used.get(name, 0) + need <= capacity.get(name, 0) + 1e-9 for name, need in size.needs().items())

    def _refuse_what_never_fits(self, size: Size) -> None:
        has = self.capacity()
        short = [name for name, need in size.needs().items() if need > has.get(name, 0) + 1e-9]
        if short and not self._can_grow:
            found = ", ".join(f"{has.get(name, 0):g} {name}" for name in short)
            raise RunError(f"an actor asks for {size}, and this machine has {found}: lower it under cluster.stages, or give --address")  # fmt: skip  # noqa: E501


class _Lane:
    """One stage's tasks and the actors that it has now; used by one thread, looked at by all."""

    def __init__(
        self,
        fleet: Fleet,
        ray: Any,
        worker: Worker,
        shards: Iterable[Any],
        share: Share,
        watch: Watch,
    ) -> None:
        self.fleet, self.ray, self.worker, self.share, self.watch = fleet, ray, worker, share, watch
        self.shared = ray.put(worker)
        self.queue = deque(Task(number, tuple(units)) for number, units in shards)
        self.state = {task.shard: Shard() for task in self.queue}
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
        return Demand(share.size, share.least, share.most, len(self.queue) + len(self.running), share.rank)

    def work(self) -> list[str]:
        """Until every task has ended."""
        while self.queue or self.running:
            if self.fleet.stopped is not None:
                raise self.fleet.stopped
            self.watch.check()
            self._adjust()
            while self.queue and self.idle:
                task = self.queue.popleft()
                if task.shard not in self.undone:
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

    def _adjust(self) -> None:
        allowed, new = self.fleet.adjust(self)
        for host, is_new in new:
            self.preparing[host.prepare.remote(self.shared)] = host, is_new
        while self.idle and len(self.hosts) > allowed:
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
        """An actor is ready, or could not be made ready: three times, and what is left stays undone."""
        host, is_new = self.preparing.pop(ref)
        try:
            answer = self.ray.get(ref)
            self.watch.on_log(answer["log"])
            sentence = answer.get("transient")
        except self.ray.exceptions.RayActorError as error:
            self.fleet.must_answer()
            self._lose(host)
            if not is_new or _is_innocent(error):
                return
            sentence = f"a worker died in its setup ({_first_line(error)})"
        except self.ray.exceptions.RayTaskError as error:
            raise _outside_any_row(error) from error
        if sentence is None:
            self.idle.append(host)
            self.setups_failed = 0
            return
        self._lose(host)
        self.setups_failed += 1
        if self.setups_failed >= SETUP_TRIES and not (self.idle or self.running or self.preparing):
            self.undone |= {task.shard: sentence for task in self.queue}
            self.queue.clear()

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
        self.watch.on_log(answer["log"])
        if "hung" in answer:
            self._lose(host)
            return {"parts": after_hang(task, answer["hung"])}
        self.idle.append(host)
        return answer

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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
