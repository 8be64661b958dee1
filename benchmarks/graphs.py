"""Pipelines whose stages do next to nothing, so that what is measured is plait itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from infra.folder_bucket import LocalBucket
from infra.types import Snapshot
from pipelines.ask import Ask
from pipelines.graph import Graph, Node, Placement
from pipelines.plan import Planner
from pipelines.run import Result, Runner, Services
from pipelines.standing import Standing
from stages.base import Edge, Outcome, Row, RowStage
from stages.ingest import Files

REPO = Path(__file__).parent.parent
MARKS = "BENCH_MARKS"
SLOW_ROW_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Numbers(RowStage):
    """The rows that a benchmark maps: each file of the source gives `num_rows` of them."""

    writes: ClassVar[str] = "numbers"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("files"),)
    schema: ClassVar[pa.Schema] = pa.schema([("x", pa.int64())])
    num_rows: int

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """`num_rows` numbers for each file."""
        return [[{"x": x} for x in range(self.num_rows)] for _ in rows]


def plus_stage(reads: str, name: str) -> type[RowStage]:
    """A stage class that reads a dataset and writes x + 1 of each row to another."""

    def process(self: Any, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        return [[{"x": row["x"] + 1}] for row in rows]

    fields = {
        "__module__": __name__,
        "__doc__": f"x + 1 of each row of {reads}.",
        "__annotations__": {"again": int},
        "again": 0,
        "writes": name,
        "inputs": (Edge(reads, columns=("x",)),),
        "schema": pa.schema([("x", pa.int64())]),
        "process": process,
    }
    return dataclass(frozen=True, kw_only=True)(type(name.capitalize(), (RowStage,), fields))


Plus1 = plus_stage("numbers", "plus1")
Plus2 = plus_stage("plus1", "plus2")
Plus3 = plus_stage("plus2", "plus3")


def slow_step(x: int) -> int:
    """One row of work, counted by one byte at the end of a file."""
    with Path(os.environ[MARKS]).open("ab", buffering=0) as marks:
        marks.write(b".")
    time.sleep(SLOW_ROW_S)
    return x + 1


@dataclass(frozen=True, kw_only=True)
class Slow(RowStage):
    """x + 1 of each number, slowly."""

    writes: ClassVar[str] = "slow"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("numbers", columns=("x",)),)
    schema: ClassVar[pa.Schema] = pa.schema([("x", pa.int64())])

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """One row for each."""
        return [[{"x": slow_step(row["x"])}] for row in rows]


class Silent:
    """Progress that nobody sees."""

    def stage(self, *_: Any) -> None:
        """Nothing."""

    def finished(self, _: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, _: str) -> None:
        """Nothing."""


class Given(Services):
    """Services whose actors may be replaced."""

    given: Any = None

    def fleet(self) -> Any:
        """The fleet that was given, else real actors."""
        return self.given or super().fleet()


@dataclass
class Bench:
    """A root and a source in a folder, and runs over them in this process."""

    folder: Path
    ray: Callable[[], Any]
    placement: Placement
    fleet: Any = None
    """In place of Ray actors, where a benchmark leaves the workers out."""

    def __post_init__(self) -> None:
        (self.folder / "src").mkdir(parents=True, exist_ok=True)

    def sources(self, num: int) -> None:
        """Write this many different source files."""
        for i in range(num):
            (self.folder / "src" / f"{i}.txt").write_text(f"source {i}")

    @property
    def root(self) -> LocalBucket:
        """Where datasets and ledger lie."""
        return LocalBucket(self.folder / "root")

    def snapshot(self, dataset: str) -> Snapshot:
        """What the last run stood on."""
        return Standing(self.root).snapshot(dataset)

    def run(self, *stages: RowStage, ask: Ask | None = None) -> Result:
        """Run files and the given stages."""
        nodes = [Node(Files(), placement=Placement()), *(Node(s, placement=self.placement) for s in stages)]
        asked = ask or Ask()
        source = LocalBucket(self.folder / "src")
        planner = Planner(Graph("bench", tuple(nodes)), self.root, source, asked)
        services = Given(self.root, source, self.ray, lambda: None, lambda *_: {}, Silent(), "run again")
        services.given = self.fleet
        return Runner(planner, services, asked, {}).run()


def private_ray(num_cpus: int = 2) -> Any:
    """The `ray` that `plait run` starts on this machine; its workers import this checkout."""
    os.environ["PYTHONPATH"] = str(REPO)
    from infra.cluster import connect

    return connect(None, num_cpus)
