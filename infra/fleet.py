"""Ray actors, shared by all stages that work at the same time: they grow and shrink with each stage's backlog.

What can happen to a task beside what `actors.py` sees, and what then:
    the actor dies             once more; then the shard is halved, down to the row that kills
    its node dies              once more, as often as that happens: no row is at fault
    the actor hangs            the rows of that batch are isolated, the actor is replaced
    `setup` cannot be done     after some tries in a row the stage is given up; no row is to blame
`allot.py` says how many actors each stage may have; every stage looks at it in its own thread, whenever a task ends,
takes actors that are free and gives idle ones back. A running task is never interrupted for another stage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from infra.actors import Host, Worker
from infra.allot import Size, allot
from infra.cluster import answers
from infra.lane import Lane, Share, Todo, Watch
from infra.types import RunError

CLOSE_S = 5.0
CAPACITY_S = 10.0
LOST_S = 10.0
"""How long Ray's head may refuse connections before it counts as lost."""


class Fleet:
    """All actors of a run. Safe to use from several threads, one stage each."""

    def __init__(self, ray: Any, can_grow: bool = False) -> None:
        self._ray = ray
        self._can_grow = can_grow
        self._lock = threading.RLock()
        self._lanes: list[Lane] = []
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
        todo: Todo,
        share: Share,
        watch: Watch,
    ) -> list[str]:
        """Run every shard, and tell `watch` as each ends. Returns the sentences of transient failures."""
        lane = Lane(self, self._ray, worker, todo, share, watch)
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

    def warm(self, share: Share, num_tasks: int, needs: object) -> None:
        """Start what fits of a stage's actors while it is still planned; `needs` is what they import meanwhile."""
        self._refuse_what_never_fits(share.size)
        with self._lock:
            self.capacity()
            num_free = sum(size == share.size for size, _ in self._free)
            for _ in range(num_free, min(share.most, num_tasks)):
                if not self._has_room(share.size):
                    return
                host = self._start(share.size)
                host.warm.remote(needs)
                self._free.append((share.size, host))

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

    def adjust(self, lane: Lane) -> tuple[int, list[tuple[Any, bool]]]:
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
            num_born = lane.num_born() + sum(not is_new for _, is_new in got)
            while num_born < allowed and (free := self._free_one(lane.share.size)):
                num_born += 1
                lane.hosts.add(free)
                got.append((free, False))
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
        if free := self._free_one(size):
            return free, False
        while not self._has_room(size):
            if not self._free:
                return None
            self._ray.kill(self._free.pop(0)[1])
        return self._start(size), True

    def _free_one(self, size: Size) -> Any:
        for i, (other, host) in enumerate(self._free):
            if other == size:
                del self._free[i]
                return host
        return None

    def _start(self, size: Size) -> Any:
        options = {"num_cpus": size.cpus, "num_gpus": size.gpus, "resources": dict(size.resources) or None}
        return self._ray.remote(Host).options(**options, max_restarts=0).remote()

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
