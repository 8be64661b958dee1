"""What a person asked for, beside the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from infra.types import UserError
from pipelines.graph import Graph
from stages.base import RowStage

DEFAULT_LAG = 2


@dataclass(frozen=True)
class Ask:
    """The flags of `plan` and `run`."""

    only: str | None = None
    start: str | None = None
    to: str | None = None
    force: bool = False
    limit: int | None = None
    refresh: tuple[str, ...] = ()
    retry_quarantined: bool = False
    wave: int | None = None
    """Stream the input through the graph, so many files at a time."""
    lag: int = DEFAULT_LAG
    """Finished waves of a stage that may wait for the slowest stage that reads it."""
    profile: bool = False
    """Trace a few steps of every training."""
    rows_only: bool = False
    """Leave the job stages as they stand (for `plait forget`)."""

    def selected(self, graph: Graph) -> set[str]:
        """The stages that may run."""
        names = {graph.node(self.only).name} if self.only else set(graph.names)
        if self.start:
            names &= graph.downstream_of(self.start)
        if self.to:
            names &= graph.upstream_of(graph.node(self.to).name)
        for name in self.refresh:
            graph.node(name)
        if not names:
            raise UserError("nothing lies between the stages asked for: --from must come before --to")
        if self.rows_only:
            names &= {node.name for node in graph if isinstance(node.stage, RowStage)}
        return names
