"""Small fragments of many shards become few, in the actors, before the commit.

What a killed driver leaves behind of it is garbage: the shards' own fragments are still there, and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.allot import Size
from infra.blame import Task
from infra.bucket import Bucket
from infra.compact import groups, merge_staged
from infra.lane import Share, Todo
from infra.store import Store
from infra.types import Outcome, Row, RunError
from pipelines.plan import StagePlan
from pipelines.publish import Site

MERGE_DEADLINE_S = 600.0


@dataclass
class MergeWorker:
    """Writes one fragment for each group; a group is a shard, a fragment a unit."""

    root: Bucket
    dataset: str
    own: pa.Schema
    batch_rows: int = 1
    deadline_s: float = MERGE_DEADLINE_S

    def setup(self) -> None:
        """Nothing to load."""
        self.store = Store(self.root)

    def close(self) -> None:
        """Nothing to remove."""

    def load(self, units: Sequence[str]) -> list[Row]:
        """The group is one row: a fragment alone is nobody's fault."""
        return [{"fragments": list(units)}]

    def process(self, rows: Sequence[Row]) -> Sequence[Outcome]:
        """Merge."""
        return [[{"staged": merge_staged(self.store, self.dataset, row["fragments"], self.own)}] for row in rows]

    def finish(self, task: Task, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The new fragment."""
        if not isinstance(outcomes[0], list):
            raise RunError(f"{len(task.units)} small fragments of {self.dataset} could not be merged ({outcomes[0]})")
        return {"fragments": outcomes[0][0]["staged"].fragments}


def merged(site: Site, plan: StagePlan, staged: list[str]) -> list[str]:
    """The fragments to commit: as they are where they are few or large."""
    own = plan.node.stage.schema
    found: dict[int, Sequence[str]] = dict(enumerate(groups(staged, own)))
    todo = [i for i, group in found.items() if len(group) > 1]
    if not todo:
        return staged

    def on_group(i: int, parts: list[dict[str, Any]]) -> None:
        found[i] = [f for part in parts for f in part["fragments"]]

    watch = site.watch(plan.name, on_group, lambda what: site.show(plan.name, 0, 0, what))
    share = Share(Size(), 1, plan.node.placement.workers, len(site.planner.graph.names))
    watch.notice(f"merging {len(staged)} fragments")
    sentences = site.fleet().map(MergeWorker(site.root, plan.name, own), Todo(todo, found.__getitem__), share, watch)
    if sentences:
        raise RunError(f"{plan.name} could not merge its fragments ({sentences[0]}); finished shards are kept: {site.resume}")  # fmt: skip  # noqa: E501
    return [fragment for i in sorted(found) for fragment in found[i]]
