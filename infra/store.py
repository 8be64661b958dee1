"""Lance datasets: read at a snapshot, stage fragments that no version names yet, read a version back, tag it.

`commits.py` publishes what was staged here; `compact.py` makes few fragments of many.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")
warnings.filterwarnings("ignore", message="lance is not fork-safe")  # Ray starts processes by exec, not by fork alone

import lance
import numpy as np
import pyarrow as pa
from lance.dataset import ColumnOrdering
from lance.fragment import write_fragments

from infra import requests
from infra.bucket import Bucket
from infra.digests import digest_of, key_words, num_distinct
from infra.types import RunError, Snapshot, UserError
from infra.world import is_lost_put, wait

KEY = pa.field("key", pa.binary(16))
PARENTS = pa.field("parents", pa.list_(pa.binary(16)))
LABEL = pa.field("label", pa.string())
MAX_ROWS_PER_FILE = 1 << 20
LIST_FROM_FILES = 256
"""From so many files on, one listing of a thousand objects a request costs less than a request for each."""
IO_THREADS = 16
TAG_TRIES = 20


def full_schema(own: pa.Schema) -> pa.Schema:
    """A dataset's schema: key, parents, label, then the stage's own columns; blob columns as Lance wants them."""
    fields = [lance.blob_field(f.name) if is_blob(f) else f for f in own]
    return pa.schema([KEY, PARENTS, LABEL, *fields])


def is_blob(field: pa.Field) -> bool:
    """Whether the stage declared this column with `stages.base.blob`."""
    return b"plait.blob" in (field.metadata or {})


def blob_names(own: pa.Schema) -> list[str]:
    """The blob columns among a stage's own."""
    return [f.name for f in own if is_blob(f)]


def declared(own: pa.Schema) -> pa.Schema:
    """A dataset's own columns as its stage declared them."""
    blob = {b"plait.blob": b"v2"}
    return pa.schema(
        [pa.field(f.name, pa.large_binary(), metadata=blob) if isinstance(f.type, pa.ExtensionType) else f for f in own]
    )


def to_table(rows: Sequence[Mapping[str, Any]], own: pa.Schema) -> pa.Table:
    """Rows with key, parents and label as a table in the dataset's schema."""
    keys, parents, labels = ([row[field.name] for row in rows] for field in (KEY, PARENTS, LABEL))
    return table_of(keys, parents, labels, rows, own)


def table_of(
    keys: Sequence[bytes],
    parents: Sequence[Sequence[bytes]],
    labels: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    own: pa.Schema,
) -> pa.Table:
    """As `to_table`, for rows that hold the stage's own columns alone."""
    columns: list[Any] = [pa.array(keys, KEY.type), pa.array(parents, PARENTS.type), pa.array(labels, LABEL.type)]
    for field in own:
        values = [row[field.name] for row in rows]
        columns.append(lance.blob_array(values) if is_blob(field) else pa.array(values, field.type))
    return pa.table(columns, schema=full_schema(own))


def ordering(column: str, descending: bool) -> Any:
    """An order of rows for a scan: nulls last."""
    return ColumnOrdering(column, ascending=not descending, nulls_first=False)


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python values; keys are cut out of their buffer, without an Arrow scalar for each."""
    if column.type != KEY.type or column.null_count:
        return column.to_pylist()
    data = key_words(column).tobytes()
    return [data[at : at + 16] for at in range(0, len(data), 16)]


@dataclass(frozen=True)
class Staged:
    """What a shard has written and not yet published."""

    fragments: tuple[str, ...]
    """FragmentMetadata as JSON."""
    files: Mapping[str, int]
    """Every file written, blobs beside the data included (no fragment names those): path in the bucket to bytes."""
    rows: int


class Store:
    """The datasets of a root."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._taken_from: tuple[Snapshot, lance.LanceDataset] | None = None

    def uri(self, dataset: str) -> str:
        """Address of a dataset."""
        return self.bucket.url(f"datasets/{dataset}.lance")

    def open(self, snapshot: Snapshot) -> lance.LanceDataset:
        """The dataset at exactly this version; found by name under this root, since roots can move."""
        return self.at(snapshot.name, snapshot.version)

    def at(self, dataset: str, version: int | None = None) -> lance.LanceDataset:
        """The dataset at a version, by default its newest."""
        return lance.dataset(self.uri(dataset), version=version, storage_options=self.bucket.storage_options())

    def exists(self, dataset: str) -> bool:
        """Whether the dataset has any version."""
        return any(True for _ in self.bucket.entries(f"datasets/{dataset}.lance/_versions"))

    def head(self, dataset: str) -> int:
        """The newest version, or 0 where there is none."""
        return self.at(dataset).version if self.exists(dataset) else 0

    # --- reading -------------------------------------------------------------------------------------------

    def scan(
        self, snapshot: Snapshot, columns: Mapping[str, str] | Sequence[str], where: str | None = None
    ) -> pa.Table:
        """Columns (or named SQL expressions) of the rows that pass, in stable order; never blob payloads."""
        wanted = dict(columns) if isinstance(columns, Mapping) else list(columns)
        return self.open(snapshot).to_table(columns=wanted, filter=where)

    def take(self, snapshot: Snapshot, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Rows at positions of the snapshot's order; blob columns as bytes."""
        if self._taken_from is None or self._taken_from[0] != snapshot:
            self._taken_from = snapshot, self.open(snapshot)  # shard after shard reads the same pinned version
        dataset = self._taken_from[1]
        blobs = [f.name for f in dataset.schema if isinstance(f.type, pa.ExtensionType) and f.name in columns]
        plain = [c for c in columns if c not in blobs]
        table = dataset.take(list(positions), columns=plain or ["key"])
        for name in blobs:
            payload = pa.array(self._blobs(dataset, name, positions), pa.large_binary())
            table = table.append_column(name, payload)
        return table.select(list(columns))

    def addresses(self, snapshot: Snapshot, positions: np.ndarray) -> dict[int, list[int]]:
        """Row addresses at positions of the snapshot's order, by fragment."""
        found: dict[int, list[int]] = {}
        if len(positions):
            scanner = self.open(snapshot).scanner(columns=["key"], with_row_address=True)
            for address in np.asarray(scanner.to_table()["_rowaddr"])[positions].tolist():
                found.setdefault(address >> 32, []).append(address)
        return found

    @staticmethod
    def _blobs(dataset: lance.LanceDataset, column: str, positions: Sequence[int]) -> list[bytes | None]:
        if not positions:
            return []
        found = dataset.read_blobs(column, indices=list(positions), preserve_order=True)
        return [data for _, data in found]

    # --- staging, and what was published ----------------------------------------------------------------------------

    def stage(self, dataset: str, rows: Sequence[Mapping[str, Any]], own: pa.Schema) -> Staged:
        """Write rows as fragments that no version names yet."""
        return self.stage_table(dataset, to_table(rows, own), own)

    def stage_table(self, dataset: str, table: pa.Table, own: pa.Schema) -> Staged:
        """As `stage`, for a table already in the dataset's schema."""
        return self.stage_batches(dataset, table.to_reader(), own) if table.num_rows else Staged((), {}, 0)

    def stage_batches(self, dataset: str, batches: pa.RecordBatchReader, own: pa.Schema) -> Staged:
        """As `stage`, for a stream of batches in the dataset's schema; it must hold a row."""
        fragments = write_fragments(
            batches,
            self.uri(dataset),
            schema=full_schema(own),
            mode=self._mode(dataset, own),
            max_rows_per_file=MAX_ROWS_PER_FILE,
            storage_options=self.bucket.storage_options(),
        )
        files: dict[str, int] = {}
        for file in (file for fragment in fragments for file in fragment.files):
            data = f"datasets/{dataset}.lance/data/{file.path}"
            files[data] = file.file_size_bytes or self.bucket.size(data) or 0
            files |= {blob.path: blob.size_bytes for blob in self.bucket.entries(data.removesuffix(".lance"))}
        if self.bucket.storage_options() is not None:
            requests.count("PUT", sent=sum(files.values()), num=len(files))
        num_rows = sum(fragment.physical_rows for fragment in fragments)
        return Staged(tuple(json.dumps(f.to_json()) for f in fragments), files, num_rows)

    def _mode(self, dataset: str, own: pa.Schema) -> str:
        """How fragments are written: for the columns that the dataset has, or, where a stage got others, for a version
        that replaces them all (Lance refuses to append to other columns)."""
        if not self.exists(dataset):
            return "append"
        there, wanted = ([(f.name, str(f.type)) for f in s] for s in (self.at(dataset).schema, full_schema(own)))
        return "append" if there == wanted else "overwrite"

    def missing(self, dataset: str, files: Mapping[str, int]) -> set[str]:
        """Staged files that are not there with the size that their writer noted."""
        if len(files) > LIST_FROM_FILES:
            found = {e.path: e.size_bytes for e in self.bucket.entries(f"datasets/{dataset}.lance/data")}
        else:
            with ThreadPoolExecutor(IO_THREADS) as threads:
                found = dict(zip(files, threads.map(self.bucket.size, files), strict=True))
        return {path for path, size in files.items() if found.get(path) != size}

    @staticmethod
    def with_blobs(table: pa.Table, own: pa.Schema) -> pa.Table:
        """A table that `take` gave, in the dataset's schema again: bytes as blobs."""
        blobs = blob_names(own)
        schema = full_schema(own)
        columns = [lance.blob_array(table[f.name].to_pylist()) if f.name in blobs else table[f.name] for f in schema]
        return pa.table(columns, schema=schema)

    def tagged(self, dataset: str) -> set[int]:
        """Versions that a tag pins."""
        return {tag["version"] for tag in self.at(dataset).tags.list().values()}

    def files(self, dataset: str) -> list[tuple[int, str]]:
        """(version, path below the dataset) of every file that any version names."""
        table = self.at(dataset).tracked_files().read_all()
        return list(zip(table["version"].to_pylist(), table["path"].to_pylist(), strict=True))

    def snapshot(self, dataset: str, version: int) -> Snapshot:
        """Read a published version back: its keys must be unique; their digest names it."""
        keys = self.at(dataset, version).to_table(columns=["key"])["key"]
        if num_distinct(keys) != len(keys):
            raise RunError(f"{dataset}@{version} has the same key twice: the stage's `content` does not name its rows")
        return Snapshot(dataset, self.uri(dataset), version, digest_of(keys), len(keys))

    def tag(self, snapshot: Snapshot, name: str) -> None:
        """Pin a version against clean-up; a tag that exists already points there."""
        dataset = self.open(snapshot)
        for attempt in range(TAG_TRIES):
            try:
                if name in dataset.tags.list():
                    return
                dataset.tags.create(name, snapshot.version)
            except OSError as error:
                if not is_lost_put(error):
                    raise
                wait(attempt)
        raise RunError(f"{snapshot.name}@{snapshot.version} could not be tagged in {TAG_TRIES} tries: run again")

    def untag(self, snapshot: Snapshot, prefix: str) -> None:
        """Take this version's pins of that name away."""
        dataset = self.at(snapshot.name)
        for name, tag in dataset.tags.list().items():
            if name.startswith(prefix) and tag["version"] == snapshot.version:
                dataset.tags.delete(name)


class SnapshotReader:
    """Random access to chosen rows of a snapshot; picklable: each process opens the dataset itself."""

    def __init__(self, bucket: Bucket, snapshot: Snapshot, positions: np.ndarray | None) -> None:
        self.bucket = bucket
        self.snapshot = snapshot
        self.positions = positions

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the opened dataset."""
        return {k: v for k, v in self.__dict__.items() if k != "_store"}

    @cached_property
    def _store(self) -> Store:
        return Store(self.bucket)

    def __len__(self) -> int:
        return self.snapshot.rows if self.positions is None else len(self.positions)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at these positions, in the order asked for; blob columns as bytes."""
        at = [int(r) if self.positions is None else int(self.positions[r]) for r in rows]
        return self._store.take(self.snapshot, at, columns)

    def scan(self, columns: Sequence[str], batch_rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """All rows, batch by batch."""
        for start in range(0, len(self), batch_rows):
            yield from (
                self.take(range(start, min(start + batch_rows, len(self))), columns).combine_chunks().to_batches()
            )


def check_clauses(own: pa.Schema, clauses: Mapping[str, str]) -> None:
    """Refuse select clauses that are no SQL over these columns, before anything runs."""
    plain = pa.schema([f for f in (KEY, PARENTS, LABEL, *own) if not is_blob(f)])
    empty = lance.write_dataset(plain.empty_table(), "memory://clauses")
    for name, clause in clauses.items():
        try:
            empty.to_table(columns={"verdict": f"coalesce(({clause}), false)"})
        except ValueError as error:
            why = str(error).split(", /")[0].split("error: ")[-1].split(" Valid fields")[0]
            columns = ", ".join(f.name for f in own)
            raise UserError(f"select.{name}={clause!r} is no condition over the scores ({why.rstrip('.')}): write SQL over {columns}") from None  # fmt: skip  # noqa: E501
