"""From a checkpoint back to raw files, and from a raw file forward, over the keys that rows carry.

Edges run as the data flowed. A row's `parents` name rows of the inputs that its materialisation pinned; a
checkpoint's parents are the packs snapshot that it was trained on, all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra.ledger import snapshot_of
from pipelines.standing import Standing
from pipelines.target import Target

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

KEY_TYPE = pa.binary(16)
_COLUMNS = ("key", "parents", "label", "path", "unit", "manifest", "checkpoint", "training", "step")


@dataclass
class Picture:
    """Nodes and edges, each once."""

    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)

    def node(self, name: str, kind: str, label: str) -> str:
        """Add a node; its id comes back."""
        self.nodes.setdefault(name, {"id": name, "kind": kind, "label": label})
        return name

    def edge(self, start: str, end: str) -> None:
        """Add an edge along the flow of the data."""
        self.edges[(start, end)] = None

    def to_json(self) -> dict[str, Any]:
        """As `plait lineage --json` prints it."""
        return {"nodes": list(self.nodes.values()), "edges": [list(e) for e in self.edges]}


class Lineage:
    """Walks one root."""

    def __init__(self, standing: Standing, sides: bool = True) -> None:
        self.standing = standing
        self.sides = sides  # whether what a side input (a tokenizer) was made of counts as an ancestor
        self.store = standing.store

    # --- back ----------------------------------------------------------------------------------------------

    def up(self, target: Target) -> Picture:
        """Everything that the target was made of."""
        picture = Picture()
        self._up(picture, target.done, target.keys, single=target.keys is not None, seen={})
        return picture

    def _up(
        self, picture: Picture, done: Mapping[str, Any], keys: pa.Array | None, single: bool, seen: dict[Any, Any]
    ) -> None:
        """Add the rows `keys` of a materialisation (None: its snapshot), then what they came from."""
        rows = self._rows(done, keys)
        ids = self._nodes(picture, done, rows, rows_shown=single)
        is_checkpoint = "manifest" in rows.column_names
        if "training" in rows.column_names and not done["inputs"]:
            self._trained(picture, rows, ids, seen)
        parents = pc.list_flatten(rows["parents"].combine_chunks()) if rows.num_rows else pa.array([], KEY_TYPE)
        parents = parents.unique() if len(parents) else pa.array([], KEY_TYPE)
        for given in done["inputs"].values():
            before = self.standing.of_input(given)
            passed_by = given["role"] == "select" and single and not is_checkpoint
            passed_by = passed_by or given["role"] == "parent"  # the rows' own parents lead there
            if before is None or passed_by or (given["role"] == "side" and not self.sides):
                continue
            whole = is_checkpoint or given["role"] != "rows"
            wanted = None if whole else self._matching(before, parents, given["unit"])
            if wanted is not None and not len(wanted):
                continue
            mark = (before["dataset"], before["snapshot"]["version"], whole)
            shown = single and not whole
            if shown:
                self._link_rows(picture, rows, before, wanted, given["unit"])
            else:
                start = self._snapshot_node(picture, before)
                for end in ids:
                    picture.edge(start, end)
            known = seen.get(mark)
            if known is not None and wanted is not None and pc.all(pc.is_in(wanted, value_set=known)).as_py():
                continue
            if known is not None and wanted is None:
                continue
            seen[mark] = wanted if wanted is not None else pa.array([], KEY_TYPE)
            self._up(picture, before, wanted, shown, seen)

    def _trained(self, picture: Picture, rows: pa.Table, ids: list[str], seen: dict[Any, Any]) -> None:
        """Checkpoints that an evaluation found in the root, and the trainings that have ended among theirs."""
        found = rows.select(["checkpoint", "training", "step"]).to_pylist()
        for place, row in enumerate(found):
            node = picture.node(f"checkpoint:{row['checkpoint']}", "checkpoint", f"model step {row['step']}")
            picture.edge(node, ids[place] if len(ids) == len(found) else ids[0])
        for training in dict.fromkeys(row["training"] for row in found):
            for made in self.standing.all.values():
                last = next((done for done in reversed(made) if done["key"] == training), None)
                if last is not None and training not in seen:
                    seen[training] = None
                    self._up(picture, last, None, False, seen)

    def _rows(self, done: Mapping[str, Any], keys: pa.Array | None) -> pa.Table:
        names = self.store.open(snapshot_of(done)).schema.names
        columns = [c for c in _COLUMNS if c in names]
        table = self.store.scan(snapshot_of(done), columns)
        return table if keys is None else table.filter(pc.is_in(table["key"], value_set=keys))

    def _matching(self, done: Mapping[str, Any], parents: pa.Array, unit: str) -> pa.Array:
        table = self.store.scan(snapshot_of(done), list(dict.fromkeys(["key", unit])))
        return table["key"].filter(pc.is_in(table[unit], value_set=parents)).combine_chunks()

    def _snapshot_node(self, picture: Picture, done: Mapping[str, Any]) -> str:
        snapshot = done["snapshot"]
        name = f"{snapshot['name']}@{snapshot['version']}"
        kind = "evaluation" if snapshot["name"] == "evals" else "snapshot"
        node = picture.node(f"{kind}:{name}", kind, f"{name} ({snapshot['rows']:,} rows)")
        stage = picture.node(f"stage:{done['dataset']}/{done['key'][:8]}", "stage", done["dataset"])
        picture.edge(stage, node)
        return node

    def _nodes(self, picture: Picture, done: Mapping[str, Any], rows: pa.Table, rows_shown: bool) -> list[str]:
        """Nodes for these rows: raw files and checkpoints always by name, other rows only where asked.

        Returns the ids that inputs lead to: the stage for a snapshot, the rows themselves otherwise.
        """
        columns = {c: rows[c].to_pylist() for c in rows.column_names if c not in ("parents", "unit")}
        if "path" in columns:
            files = [picture.node(f"file:{p}", "file", p) for p in columns["path"]]
            if not rows_shown:
                node = self._snapshot_node(picture, done)
                for file in files:
                    picture.edge(file, f"stage:{done['dataset']}/{done['key'][:8]}")
                return [node]
            return files
        stage = f"stage:{done['dataset']}/{done['key'][:8]}"
        if "manifest" in columns:
            node = self._snapshot_node(picture, done)
            for manifest, step in zip(columns["manifest"], columns["step"], strict=True):
                label = f"{done['dataset']} step {step}"
                picture.edge(node, picture.node(f"checkpoint:{manifest}", "checkpoint", label))
            return [stage]
        if not rows_shown:
            self._snapshot_node(picture, done)
            return [stage]
        labels = zip(columns["key"], columns["label"], strict=True)
        return [picture.node(f"row:{k.hex()}", "row", f"{done['dataset']}: {label}") for k, label in labels]

    def _link_rows(
        self, picture: Picture, rows: pa.Table, before: Mapping[str, Any], wanted: pa.Array, unit: str
    ) -> None:
        """Row-to-row edges between two neighbouring datasets."""
        above = self._rows(before, wanted)
        ids = self._nodes(picture, before, above, rows_shown=True)
        by_unit: dict[bytes, list[str]] = {}
        for key, node in zip(above[unit].to_pylist(), ids, strict=True):
            by_unit.setdefault(key, []).append(node)
        for key, parents in zip(rows["key"].to_pylist(), rows["parents"].to_pylist(), strict=True):
            for parent in parents:
                for node in by_unit.get(parent, []):
                    picture.edge(node, f"row:{key.hex()}")

    # --- forward -------------------------------------------------------------------------------------------

    def down(self, target: Target) -> Picture:
        """Everything that was made of the target, in every materialisation that stands in the ledger."""
        picture = Picture()
        rows = self._rows(target.done, target.keys)
        self._nodes(picture, target.done, rows, rows_shown=target.keys is not None)
        self._down(picture, target.done["dataset"], rows, target.keys is not None, set())
        return picture

    def _down(self, picture: Picture, dataset: str, rows: pa.Table, shown: bool, seen: set[tuple[str, bytes]]) -> None:
        for done in (d for dones in self.standing.all.values() for d in dones if dataset in d["inputs"]):
            given = done["inputs"][dataset]
            snapshot = snapshot_of(done)
            if given["role"] in ("select", "parent"):
                continue
            table = self._rows(done, None)
            if "manifest" in table.column_names or given["role"] == "side":
                if self._stood_on(given, rows):
                    self._reach_snapshot(picture, done, dataset, rows, shown, table, seen)
                continue
            units = rows[given["unit"]].combine_chunks() if given["unit"] in rows.column_names else rows["key"]
            found = self._children(table, units)
            fresh = [i for i, k in enumerate(found["key"].to_pylist()) if (snapshot.name, k) not in seen]
            found = found.take(pa.array(fresh, pa.int64()))
            if not found.num_rows:
                continue
            seen |= {(snapshot.name, k) for k in found["key"].to_pylist()}
            if shown:
                self._link_down(picture, rows, done, found, given["unit"])
            else:
                self._snapshot_node(picture, done)
                picture.edge(
                    f"snapshot:{dataset}@{given['snapshot']['version']}", f"stage:{done['dataset']}/{done['key'][:8]}"
                )
            self._down(picture, snapshot.name, found, shown, seen)

    def _stood_on(self, given: Mapping[str, Any], rows: pa.Table) -> bool:
        """Whether the snapshot that a job was given holds any of these rows."""
        before = self.standing.of_input(given)
        if before is None:
            return False
        keys = self.store.scan(snapshot_of(before), ["key"])["key"]
        return bool(pc.any(pc.is_in(keys, value_set=rows["key"].combine_chunks())).as_py())

    def _reach_snapshot(
        self,
        picture: Picture,
        done: Mapping[str, Any],
        dataset: str,
        rows: pa.Table,
        shown: bool,
        table: pa.Table,
        seen: set[Any],
    ) -> None:
        mark = (f"{done['dataset']}@{done['snapshot']['version']}", b"")
        if mark in seen:
            return
        seen.add(mark)
        self._nodes(picture, done, table, rows_shown=False)
        stage = f"stage:{done['dataset']}/{done['key'][:8]}"
        version = done["inputs"][dataset]["snapshot"]["version"]
        starts = [f"row:{k.hex()}" for k in rows["key"].to_pylist()] if shown else [f"snapshot:{dataset}@{version}"]
        if shown and "manifest" in rows.column_names:
            starts = [f"checkpoint:{m}" for m in rows["manifest"].to_pylist()]
        for start in starts:
            if start in picture.nodes:
                picture.edge(start, stage)
        if "manifest" in table.column_names:
            self._down(picture, done["dataset"], table, False, seen)

    @staticmethod
    def _children(table: pa.Table, units: pa.Array | pa.ChunkedArray) -> pa.Table:
        parents = table["parents"].combine_chunks()
        if not len(parents):
            return table
        at = pc.list_parent_indices(parents).filter(pc.is_in(pc.list_flatten(parents), value_set=units))
        return table.take(at.unique())

    def _link_down(self, picture: Picture, rows: pa.Table, done: Mapping[str, Any], found: pa.Table, unit: str) -> None:
        names = rows.column_names
        prefix = (
            [f"file:{p}" for p in rows["path"].to_pylist()]
            if "path" in names
            else [f"row:{k.hex()}" for k in rows["key"].to_pylist()]
        )
        above: dict[bytes, list[str]] = {}
        for key, node in zip(rows[unit].to_pylist(), prefix, strict=True):
            above.setdefault(key, []).append(node)
        self._nodes(picture, done, found, rows_shown=True)
        for key, parents in zip(found["key"].to_pylist(), found["parents"].to_pylist(), strict=True):
            for node in (n for p in parents for n in above.get(p, [])):
                picture.edge(node, f"row:{key.hex()}")
