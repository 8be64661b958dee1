"""The plan file of a materialisation: which units go to which shard, at which pinned inputs.

A pure function of the key and the inputs; kept in the ledger, so that a resumed run with other workers goes on
with the same shards. Parquet: one row per unit to compute; the header is JSON in the schema's metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.ledger import Folder
from infra.store import Store, is_blob
from infra.types import Snapshot
from pipelines.graph import Graph
from pipelines.plan import LISTING, StagePlan
from pipelines.units import parent_positions
from pipelines.worker import Unit
from stages.base import Edge, Stage

HEADER = b"plait.plan"
MIN_ROWS = 64
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class ShardPlan:
    """A plan as written: header and units by shard."""

    number: int
    intent: Mapping[str, str]
    """Why and by which code: only a run of the same intent goes on with it."""
    inputs: Mapping[str, Snapshot]
    base: str | None
    """Key of the materialisation whose rows are kept, if any."""
    base_version: int
    head: int
    """The dataset's version when the plan was made: our commit can only be later."""
    keys: pa.Array
    """Names of all units to compute."""
    table: pa.Table
    """Where each unit is found, shard after shard: columns (edge, position), or those of the listing."""
    bounds: tuple[int, ...]
    """Where in it each shard begins, and the end."""

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.bounds) - 1

    def size(self, shard: int) -> int:
        """Units of a shard."""
        return self.bounds[shard + 1] - self.bounds[shard]

    def units(self, shard: int) -> list[Unit]:
        """The units of a shard: made when it is handed out, for all at once would fill the driver's memory."""
        part = self.table.slice(self.bounds[shard], self.size(shard))
        columns = [part[name].to_pylist() for name in part.column_names]
        is_listing = "path" in part.column_names
        return list(zip(*([[LISTING] * part.num_rows] if is_listing else []), *columns, strict=True))


def default_rows(stage: Stage, graph: Graph, num_units: int) -> int:
    """Units per shard where the placement says nothing.

    A shard costs about 5 ms beside its rows, and is the most that a crash costs each worker: so from 64 units on
    about 200 shards (few enough to be committed unmerged), of up to 8,192 units each, and of more only where there
    would be over 10,000 fragments to commit. Where media pass through the worker it stays at 64, since a shard is
    held in memory.
    """
    sources = [(edge.dataset, edge.columns) for edge in stage.inputs]
    sources += [edge.parent for edge in stage.inputs if edge.parent]
    read = {name: graph.node(dataset).stage.schema for dataset, columns in sources for name in columns}
    fields = [*stage.schema, *(schema.field(name) for name, schema in read.items() if name in schema.names)]
    if getattr(stage, "reads_raw", False) or any(is_blob(field) for field in fields):
        return MIN_ROWS
    return max(MIN_ROWS, min(8192, num_units // 200), num_units // MAX_SHARDS)


def make(plan: StagePlan, store: Store, intent: Mapping[str, str], head: int, shard_rows: int) -> bytes:
    """The plan file: units to compute in order of their positions, so that a shard reads neighbouring rows.

    In order of their keys each row of a shard would lie in another file (measured: docs/benchmarks.md).
    """
    edges = np.concatenate(
        [np.full(len(u.keys), i, np.int32) for i, u in enumerate(plan.units)] or [np.zeros(0, np.int32)]
    )
    positions = np.concatenate([u.positions for u in plan.units] or [np.zeros(0, np.int64)])
    keys = pa.concat_arrays([u.keys for u in plan.units])
    compute = plan.difference.compute if plan.difference is not None else np.arange(len(keys))
    compute = compute[np.lexsort((positions[compute], edges[compute]))]
    at = pa.array(compute)
    table = pa.table(
        {
            "shard": pa.array(np.arange(len(compute)) // max(1, shard_rows), pa.int32()),
            "edge": pa.array(edges[compute]),
            "position": pa.array(positions[compute]),
            "key": keys.take(at),
        }
    )
    if any(edge.parent for edge in row_edges(plan.node.stage)):
        table = table.append_column("parent", pa.array(_parents(plan, store)[compute]))
    if plan.listing is not None:
        for name in ("path", "size_bytes", "stamp", "left_out"):
            table = table.append_column(name, plan.listing[name].combine_chunks().take(pa.array(positions[compute])))
    header = {
        "intent": dict(intent),
        "inputs": {name: s.to_json() for name, s in plan.snapshots.items()},
        "base": plan.base.done["key"] if plan.base else None,
        "base_version": plan.base.snapshot.version if plan.base else 0,
        "head": head,
        "listing": plan.listing is not None,
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({HEADER: json.dumps(header).encode()}), sink, compression="zstd")
    return sink.getvalue()


def row_edges(stage: Stage) -> list[Edge]:
    """The edges whose rows are units, in the order in which units number them."""
    return [edge for edge in stage.inputs if edge.role == "rows"]


def _parents(plan: StagePlan, store: Store) -> np.ndarray:
    """Per unit: where its first parent lies; -1 where it is gone, or the edge does not ask."""
    found = []
    for edge, units in zip(row_edges(plan.node.stage), plan.units, strict=True):
        of = plan.snapshots
        at = parent_positions(store, units.positions, of[edge.dataset], of[edge.parent[0]]) if edge.parent else None
        found.append(np.full(len(units.keys), -1, np.int64) if at is None else at)
    return np.concatenate(found)


def read(folder: Folder, number: int) -> ShardPlan:
    """Read `plan.N` back."""
    table = pq.read_table(io.BytesIO(folder.get_bytes(f"plan.{number}")))
    header = json.loads(table.schema.metadata[HEADER])
    names = ("key", "path", "size_bytes", "stamp", "left_out") if header["listing"] else ("edge", "position")
    names += ("parent",) if "parent" in table.column_names else ()
    bounds = np.cumsum(np.bincount(np.asarray(table["shard"]), minlength=0))
    return ShardPlan(
        number,
        header["intent"],
        {name: Snapshot(**s) for name, s in header["inputs"].items()},
        header["base"],
        header["base_version"],
        header["head"],
        table["key"].combine_chunks() if table.num_rows else pa.array([], pa.binary(16)),
        table.select(names).combine_chunks(),
        (0, *bounds.tolist()),
    )
