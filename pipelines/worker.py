"""What runs inside an actor for a row stage: read units, process, name the rows, stage their fragments."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.actors import Failure
from infra.blame import Task
from infra.bucket import Bucket
from infra.checkpoints import download
from infra.digests import digest_of
from infra.ledger import Folder
from infra.listing import SourceFile
from infra.store import SnapshotReader, Store, table_of, to_table, values_of
from infra.traces import error_class, trace_digest
from infra.types import BadRow, Filtered, Outcome, Row, Snapshot
from pipelines.checkpoints import last_manifest
from pipelines.key import RowKeys
from stages.base import RowStage

Unit = tuple[Any, ...]
"""(edge number, position in the edge's snapshot[, position of its parent]), or
("listing", key, path, size, stamp, why it is left out)."""

MAX_ERROR_CHARS = 4000
SCHEMA_ERRORS = (pa.ArrowException, KeyError, TypeError, OverflowError)


def fetch_checkpoint(root: Bucket, snapshot: Snapshot, folder: Path) -> Path:
    """Copy the verified files of a checkpoint dataset's last row (highest step) into a folder."""
    manifest, sha256 = last_manifest(Store(root), snapshot)
    download(root, manifest, folder, sha256)
    return folder


@dataclass
class SideKit:
    """The `Kit` that a stage sees in `setup`: its side inputs."""

    root: Bucket
    sides: Mapping[str, Snapshot]
    _folders: list[tempfile.TemporaryDirectory] = field(default_factory=list)

    def checkpoint(self, dataset: str) -> Path:
        """Local folder with the verified files of a side checkpoint; it lives as long as the worker."""
        folder = tempfile.TemporaryDirectory(prefix="plait-side-")
        self._folders.append(folder)
        return fetch_checkpoint(self.root, self.sides[dataset], Path(folder.name))

    def reader(self, snapshot: Mapping[str, Any]) -> SnapshotReader:
        """Random access to a snapshot that a row names."""
        return SnapshotReader(self.root, Snapshot(**snapshot), None)

    @contextmanager
    def fetch(self, manifest: str, sha256: str, names: Collection[str] | None = None) -> Generator[Path]:
        """A local folder with the verified files of a checkpoint that a row names."""
        with tempfile.TemporaryDirectory(prefix="plait-checkpoint-") as folder:
            download(self.root, manifest, Path(folder), sha256, names)
            yield Path(folder)

    def close(self) -> None:
        """Remove the folders."""
        for folder in self._folders:
            folder.cleanup()

    def rows(self, dataset: str, columns: Sequence[str]) -> pa.Table:
        """All rows of a side input."""
        return Store(self.root).scan(self.sides[dataset], list(columns))


@dataclass
class ShardWorker:
    """Processes shards of one materialisation."""

    stage: RowStage
    recipe: str
    root: Bucket
    source: Bucket | None
    inputs: tuple[Snapshot, ...]
    """Snapshots of the stage's row edges, in their order."""
    parents: Mapping[str, Snapshot]
    """Those that hold the parents of rows, where an edge asks for them."""
    sides: Mapping[str, Snapshot]
    files: Snapshot | None
    """Where raw content lies today; never part of a key, so that moved files cost nothing."""
    batch_rows: int
    deadline_s: float
    folder: Folder
    """The materialisation's folder: a whole shard's document is put here by the actor that finished it."""
    plan_number: int

    def setup(self) -> None:
        """Load what the stage needs, on a node that sees where rows are read and written."""
        self.root.check_is_here()
        if self.stage.reads_raw and self.source is not None:
            self.source.check_is_here()
        self.kit = SideKit(self.root, self.sides)
        self.tools = self.stage.setup(self.kit)
        self.store, self.parent_store = Store(self.root), Store(self.root)
        self.keys = RowKeys(self.stage, self.recipe)

    def close(self) -> None:
        """Remove the local copies of side checkpoints."""
        self.kit.close()

    def load(self, units: Sequence[Unit]) -> list[Row]:
        """One row per unit, in order."""
        with _collector_off():
            return self._load(units)

    def _load(self, units: Sequence[Unit]) -> list[Row]:
        rows: list[Row | None] = [None] * len(units)
        edges = [e for e in self.stage.inputs if e.role == "rows"]
        for number, edge in enumerate(edges):
            at = [i for i, unit in enumerate(units) if unit[0] == number]
            columns = list(dict.fromkeys(["key", "label", edge.unit, *edge.columns]))
            if not at:
                continue
            table = self.store.take(self.inputs[number], [units[i][1] for i in at], columns)
            values = {name: values_of(column) for name, column in zip(columns, table.columns, strict=True)}
            values |= {"dataset": [edge.dataset] * len(at), "unit_key": values[edge.unit]}
            for i, row in zip(at, zip(*values.values(), strict=True), strict=True):
                rows[i] = dict(zip(values, row))  # noqa: B905 - once per row, and they are as long
            if edge.parent:
                self._bring_parents(edge.parent, [(rows[i], units[i][2]) for i in at])
        for i, unit in enumerate(units):
            if unit[0] == "listing":
                _, key, *facts = unit
                names = ("path", "size_bytes", "stamp", "left_out")
                rows[i] = {**dict(zip(names, facts, strict=True)), "label": facts[0], "unit_key": key}
        loaded = [row for row in rows if row is not None]
        if self.stage.reads_raw:
            self._locate(loaded)
        return loaded

    def _bring_parents(self, wanted: tuple[str, tuple[str, ...]], rows: Sequence[tuple[Any, int]]) -> None:
        """Put each row's parent beside its columns, None where it is gone; a parent of many rows is read once."""
        dataset, columns = wanted
        positions = sorted({at for _, at in rows if at >= 0})
        table = self.parent_store.take(self.parents[dataset], positions, ["key", "label", *columns])
        found = dict(zip(positions, table.to_pylist(), strict=True))
        for row, at in rows:
            row["parent"] = found.get(at)

    def _locate(self, rows: Sequence[Row]) -> None:
        assert self.source is not None
        listed = self._places({row["digest"] for row in rows if "dataset" in row})
        for row in rows:
            # a row of the listing itself lies where it says; any other where its content was last seen
            place = listed[row["digest"]] if "dataset" in row else {"path": row["path"]}
            row["raw"] = SourceFile(self.source, digest=row.get("digest"), **place)

    def _places(self, digests: set[str]) -> dict[str, dict[str, Any]]:
        """Where each content lies: an object, or a range of bytes inside a shard."""
        if not digests:
            return {}
        assert self.files is not None
        quoted = ", ".join(f"'{d}'" for d in sorted(digests))
        columns = ["digest", "path", "container", "offset", "size_bytes"]
        rows = self.store.scan(self.files, columns, f"digest in ({quoted})").to_pylist()
        return {row.pop("digest"): row | {"offset": row["offset"] or 0} for row in rows}

    def process(self, rows: Sequence[Row]) -> Sequence[Outcome]:
        """The stage's own method; a row whose parent is gone never reaches it."""
        lost = [i for i, row in enumerate(rows) if row.get("parent", row) is None]
        if not lost:
            return self.stage.process(rows, self.tools)
        left = [row for row in rows if row["parent"] is not None]
        outcomes = list(self.stage.process(left, self.tools)) if left else []
        for i in lost:
            outcomes.insert(
                i, BadRow("The row that it was made from is gone: run without --only, or --retry-quarantined.")
            )
        return outcomes

    def finish(self, task: Task, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Stage what was made; count the rest. Rows that do not fit the schema are their unit's fault."""
        try:
            with _collector_off():
                result = self._staged(rows, outcomes)
        except SCHEMA_ERRORS:
            result = self._staged(rows, [self._fitting(outcome) for outcome in outcomes])
        return put_shard(self.folder, self.plan_number, task.shard, result) if task.is_whole else result

    def _fitting(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, list):
            return outcome
        blank = {"key": b"", "parents": [], "label": ""}
        try:
            to_table([{**new, **blank, "key": bytes(16)} for new in outcome], self.stage.schema)
        except SCHEMA_ERRORS as error:
            bad = BadRow(f"what was made of it does not fit the schema of {self.stage.writes} ({error})")
            bad.failure = Failure(str(bad), 1, error_class(error), trace_digest(error))  # type: ignore[attr-defined]
            return bad
        return outcome

    def _staged(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        keys: list[bytes] = []
        parents: list[list[bytes]] = []
        labels: list[str] = []
        made: list[Row] = []
        left: list[dict[str, Any]] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if not isinstance(outcome, list) or not outcome:
                left.append(_left(row, outcome))
                continue
            unit = [row["unit_key"]]
            # what a listing calls an object holds its time stamp: no part of a row's name
            keys += self.keys.assign(unit if self.inputs else [], outcome)
            parents += [unit] * len(outcome)
            labels += [new["label"] if "label" in new else row["label"] for new in outcome]
            made += outcome
        table = table_of(keys, parents, labels, made, self.stage.schema)
        staged = self.store.stage_table(self.stage.writes, table, self.stage.schema)
        return {
            "fragments": list(staged.fragments),
            "files": dict(staged.files),
            "rows": staged.rows,
            "digest": digest_of(table["key"]),
            "units": len(rows),
            "rest": left,
        }


def put_shard(folder: Folder, plan_number: int, shard: int, result: dict[str, Any]) -> dict[str, Any]:
    """Put a finished shard's document; the one that counts, which an earlier try may have put before it died."""
    name = f"shard.{plan_number}.{shard}"
    if folder.put(name, result):
        return result
    found = folder.get(name)
    assert found is not None
    return found


@contextmanager
def _collector_off() -> Generator[None]:
    """No cyclic garbage collection while rows are only built: it would walk all of them over and over.

    Measured by benchmarks/map_rows.py: a quarter of the worker's time. The stage's own code runs with it on.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _left(row: Row, outcome: Outcome) -> dict[str, Any]:
    entry = {"unit": row["unit_key"].hex(), "label": row["label"], "error": None, "attempt": 1}
    if isinstance(outcome, Filtered):
        return {**entry, "state": "filtered", "reason": outcome.reason}
    if isinstance(outcome, BadRow):
        failure = outcome.failure  # type: ignore[attr-defined]
        return {
            **entry,
            "state": "quarantined",
            "reason": str(outcome),
            "error": failure.error[-MAX_ERROR_CHARS:],
            "attempt": failure.attempts,
            "error_class": failure.error_class,
            "trace_digest": failure.trace_digest,
        }
    return {**entry, "state": "empty", "reason": None}
