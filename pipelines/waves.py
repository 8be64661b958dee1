"""A large input streamed through the graph in increments that overlap across stages.

The listing is frozen and ordered by H(path). Wave i of a row stage is its ordinary materialisation over the first
i * N files: an increment on its own wave i - 1, under a key of its own, with a `done` of its own. So a killed run
resumes as any other, and the last wave *is* what one go would have made, key for key.

A stage starts its wave i when its inputs have theirs and it has its own wave i - 1, and while at most `lag` of its
finished waves wait for the slowest stage that reads it. Stages that need the whole set (job stages, and what reads one
of those as a side input) are left to the runner, after the last wave; a job stage that is held and has been made
before stands still, so what reads it goes along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from infra.types import Snapshot
from pipelines.graph import Graph, Node, is_listing
from pipelines.plan import Planner
from stages.base import RowStage


@dataclass(frozen=True)
class Wave:
    """One wave of a run: its number from 1 on, of how many, and how many files it reaches to."""

    number: int
    total: int
    num_files: int

    @property
    def is_last(self) -> bool:
        """Whether it is the whole listing."""
        return self.number == self.total

    def __str__(self) -> str:
        return f"wave {self.number}/{self.total}"


@dataclass(frozen=True)
class Brought:
    """A stage brought to its state: what the runner records of it."""

    plan: Any
    done: dict[str, Any] | None
    state: str
    snapshot: Snapshot | None
    computed: int = 0
    kept: int = 0
    seconds: float = 0.0


Bring = Callable[[Node, Wave, Mapping[str, Snapshot | None]], Brought]


def cut(num_files: int, size: int) -> list[Wave]:
    """The waves of a listing."""
    total = max(1, -(-num_files // size))
    return [Wave(i + 1, total, min((i + 1) * size, num_files)) for i in range(total)]


def standing_still(planner: Planner) -> dict[str, Snapshot]:
    """Held job stages that are fresh whatever their inputs become: their readers need not wait for the last wave."""
    found: dict[str, Snapshot] = {}
    for node in planner.graph:
        if any(e.held for e in node.stage.inputs) and not isinstance(node.stage, RowStage):
            plan = planner.plan(node, dict(found))
            if plan.state == "fresh" and (snapshot := planner.standing(plan)) is not None:
                found[node.name] = snapshot
    return found


def streamed(graph: Graph, still: Mapping[str, Snapshot]) -> list[Node]:
    """The stages that go along with every wave."""
    found: list[Node] = []
    names: set[str] = set()
    for node in graph:
        sides = {e.dataset for e in node.stage.inputs if e.role == "side"}
        moving = set(graph.inputs_of(node.name)) - sides
        if isinstance(node.stage, RowStage) and sides <= set(still) and moving <= names:
            found.append(node)
            names.add(node.name)
    return found


@dataclass
class Flood:
    """The waves of one run. `bring` works in threads; all else in the caller's."""

    nodes: list[Node]
    graph: Graph
    waves: list[Wave]
    lag: int
    still: Mapping[str, Snapshot]
    bring: Bring
    stop: Callable[[BaseException], None]
    """Ends what works in the threads, with that error."""
    reached: dict[str, int] = field(default_factory=dict)
    """Waves that a stage has done."""
    at: dict[tuple[str, int], Snapshot | None] = field(default_factory=dict)
    working: dict[Future[Brought], tuple[Node, Wave]] = field(default_factory=dict)

    def run(self, ended: Callable[[Brought, Wave], None]) -> None:
        """Every streamed stage through every wave; `ended` is told of each. The first error stops the others too."""
        self.reached = {node.name: 0 for node in self.nodes}
        with ThreadPoolExecutor(len(self.nodes), "wave") as threads:
            try:
                while self._start(threads):
                    for future in wait(self.working, return_when=FIRST_COMPLETED).done:
                        node, wave = self.working.pop(future)
                        self._reach(node, wave, future.result(), ended)
            except BaseException as error:
                self.stop(error)  # before the threads are waited for
                raise

    def _start(self, threads: ThreadPoolExecutor) -> bool:
        """Start every stage that can start its next wave; whether anything is at work."""
        for node in self.nodes:
            if (wave := self._next(node)) is not None:
                inputs = {n: self._input(n, wave) for n in self.graph.inputs_of(node.name)}
                self.working[threads.submit(self.bring, node, wave, self._listings() | inputs)] = node, wave
        return bool(self.working)

    def _reach(self, node: Node, wave: Wave, brought: Brought, ended: Callable[[Brought, Wave], None]) -> None:
        self.at[node.name, wave.number] = brought.snapshot
        self.reached[node.name] = wave.number
        self._forget(node.name)
        ended(brought, wave)

    def _input(self, name: str, wave: Wave) -> Snapshot | None:
        return self.still.get(name) or self.at[name, wave.number]

    def _listings(self) -> dict[str, Snapshot | None]:
        """The newest listing: where raw content is found by digest."""
        names = [node.name for node in self.nodes if is_listing(node.stage) and self.reached[node.name]]
        return {name: self.at[name, self.reached[name]] for name in names}

    def _next(self, node: Node) -> Wave | None:
        """The wave that a stage can start now."""
        number = self.reached[node.name] + 1
        busy = any(other.name == node.name for other, _ in self.working.values())
        if busy or number > len(self.waves):
            return None
        inputs = [n for n in self.graph.inputs_of(node.name) if n not in self.still]
        if any(self.reached[n] < number for n in inputs):
            return None
        slowest = min((self.reached[r.name] for r in self._readers(node.name)), default=number)
        return self.waves[number - 1] if number - 1 - slowest <= self.lag else None

    def _readers(self, name: str) -> list[Node]:
        return [node for node in self.nodes if name in self.graph.inputs_of(node.name)]

    def _forget(self, name: str) -> None:
        """Snapshots that every reader is past."""
        for other in {name, *self.graph.inputs_of(name)}:
            past = min((self.reached[r.name] for r in self._readers(other)), default=0)
            for key in [k for k in self.at if k[0] == other and k[1] < past and k[1] < self.reached[other]]:
                del self.at[key]
