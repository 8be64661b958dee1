"""A pipeline: named stages, the select between them, and where they run (which is never part of a key)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from infra.types import UserError
from stages.base import Edge, JobStage, RowStage, Stage, Training


@dataclass(frozen=True)
class Placement:
    """How a stage runs. Changes nothing in its results, and so is in no key."""

    workers: int = 2
    """Most actors of a row stage, fewer while it has fewer shards; training workers for a job stage."""
    min_workers: int = 1
    """Actors that a row stage keeps while it has any work and others want their place."""
    cpus: float = 1.0
    """CPUs per actor."""
    gpus: float = 0.0
    """GPUs per actor."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of the Ray cluster per actor, by name."""
    batch_rows: int = 16
    """Rows handed to `process` at once."""
    shard_rows: int | None = None
    """Units per shard: aim at one to five minutes of work. Unset: by their number, see `shards.default_rows`."""
    deadline_s: float = 300.0
    """Longest a row may take; a batch gets this times its rows."""
    training: Training = field(default_factory=Training)
    """How training workers share the work of a model."""
    error_budget: float = 0.5
    """Share of units that may be quarantined (beyond the first 20) before the run stops."""

    def __post_init__(self) -> None:
        for name in ("workers", "min_workers", "batch_rows", "shard_rows", "deadline_s"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"a placement's {name} is {getattr(self, name)}: give a number above 0")
        if self.min_workers > self.workers:
            raise UserError(f"a placement's min_workers is {self.min_workers}, above its workers ({self.workers}): lower it")  # fmt: skip  # noqa: E501
        if self.cpus < 0 or self.gpus < 0 or not 0 <= self.error_budget <= 1:
            raise UserError("a placement's cpus and gpus are 0 or more, its error_budget is between 0 and 1")


@dataclass(frozen=True)
class Select:
    """Named SQL clauses over the rows of `dataset`, which score the rows of `over`.

    A row of `over` passes when all clauses are true of the row that it is the parent of.
    """

    dataset: str
    over: str
    clauses: Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """A stage in its place."""

    stage: Stage
    select: Select | None = None
    """Applied to the stage's edge on the rows that the select is over."""
    placement: Placement = field(default_factory=Placement)

    @property
    def name(self) -> str:
        """A stage is called by the dataset it writes."""
        return self.stage.writes

    def gate(self, edge: Edge) -> Select | None:
        """The select that applies to an edge: the pipeline's, where the edge reads what the select is over."""
        applies = self.select and edge.role == "rows" and edge.dataset == self.select.over
        return self.select if applies else None


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every input comes before its reader; each dataset has exactly one writer."""

    name: str
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if not re.fullmatch(r"[A-Za-z]\w*", node.name, re.ASCII):
                raise UserError(f"{node.name!r} is no name for a dataset: use letters, digits and _, as in my_captions")
            if node.name in seen:
                raise UserError(f"pipeline {self.name} writes {node.name} twice: each dataset has one writer")
            missing = sorted(set(_read_by(node)) - seen)
            if missing:
                raise UserError(f"{node.name} reads {', '.join(missing)}, which no earlier stage of {self.name} writes")
            if not isinstance(node.stage, RowStage | JobStage):
                raise UserError(f"{node.name} is no stage: derive it from RowStage or JobStage")
            if any(e.parent and e.role != "rows" for e in node.stage.inputs) or (
                isinstance(node.stage, JobStage) and any(e.parent for e in node.stage.inputs)
            ):
                raise UserError(
                    f"{node.name} asks for parents: only the rows edges of a row stage can, take parent= away"
                )
            held = {edge.held for edge in node.stage.inputs if edge.role == "rows"}
            if len(held) > 1:
                raise UserError(f"{node.name} holds some of its row edges and not others: hold all of them, or none")
            seen.add(node.name)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def names(self) -> list[str]:
        """The datasets, in order."""
        return [node.name for node in self.nodes]

    def node(self, name: str) -> Node:
        """The node that writes a dataset, or a sentence with the names that exist."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise UserError(f"{name!r} is no stage of {self.name}: choose among {', '.join(self.names)}")

    def inputs_of(self, name: str) -> list[str]:
        """The datasets that a stage reads, the select's and those of its rows' parents included."""
        return _read_by(self.node(name))

    def downstream_of(self, name: str) -> set[str]:
        """A stage and all that depend on it."""
        self.node(name)
        found = {name}
        for node in self.nodes:
            if found & set(self.inputs_of(node.name)):
                found.add(node.name)
        return found

    def upstream_of(self, name: str) -> set[str]:
        """A stage and all that it depends on."""
        found = {name}
        for node in reversed(self.nodes):
            if node.name in found:
                found |= set(self.inputs_of(node.name))
        return found


def is_listing(stage: Stage) -> bool:
    """Whether its units are the objects of the source: a row stage without inputs."""
    return isinstance(stage, RowStage) and not stage.inputs


def _read_by(node: Node) -> list[str]:
    names = [edge.dataset for edge in node.stage.inputs]
    names += [node.select.dataset] if node.select else []
    return list(dict.fromkeys([*names, *(edge.parent[0] for edge in node.stage.inputs if edge.parent)]))
