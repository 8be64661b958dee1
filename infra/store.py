"""Lance datasets: read at a snapshot, stage fragments, commit them by compare-and-swap, verify, tag.

Facts that this file stands on, each probed on pylance 14 (docs/decisions/0002-commit.md): a commit is not
idempotent; `Append` always rebases; an `Update` that names every base fragment is refused when any of them was
touched; Lance trusts the committer, so staged files are checked here; `create` is no mutex.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")
warnings.filterwarnings("ignore", message="lance is not fork-safe")  # Ray starts processes by exec, not by fork alone

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from infra.bucket import Bucket
from infra.faults import crash_point
from infra.types import RunError, Snapshot, UserError
from infra.world import is_lost_put, wait

KEY = pa.field("key", pa.binary(16))
PARENTS = pa.field("parents", pa.list_(pa.binary(16)))
LABEL = pa.field("label", pa.string())
STAMP = "plait.commit"
COMMIT_TRIES = 20
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MAX_ROWS_PER_FILE = 1 << 20


def full_schema(own: pa.Schema) -> pa.Schema:
    """A dataset's schema: key, parents, label, then the stage's own columns; blob columns as Lance wants them."""
    fields = [lance.blob_field(f.name) if is_blob(f) else f for f in own]
    return pa.schema([KEY, PARENTS, LABEL, *fields])


def is_blob(field: pa.Field) -> bool:
    """Whether the stage declared this column with `stages.base.blob`."""
    return b"plait.blob" in (field.metadata or {})


def to_table(rows: Sequence[Mapping[str, Any]], own: pa.Schema) -> pa.Table:
    """Rows with key, parents and label as a table in the dataset's schema."""
    schema = full_schema(own)
    blobs = {f.name for f in own if is_blob(f)}
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        columns.append(lance.blob_array(values) if field.name in blobs else pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def digest_of(keys: pa.ChunkedArray | pa.Array) -> str:
    """Sum mod 2^128 of H(key), as 32 hex digits: additive, independent of order (ARCHITECTURE, "Snapshot").

    The keys are themselves uniform hashes, so H is a fixed 64-bit mixer on both halves (splitmix64's finaliser).
    """
    words = key_words(keys)
    low, high = words[:, 0], words[:, 1]
    # the constant keeps the all-zero key from being a fixed point of the mixer
    mixed = [_mix(low ^ _mix(high + GOLDEN)), _mix(high ^ _mix(low + GOLDEN))]
    total = 0
    for shift, word in zip((0, 64), mixed, strict=True):
        parts = (word & np.uint64(0xFFFFFFFF), word >> np.uint64(32))
        total += sum(int(p.sum(dtype=np.uint64)) << (shift + 32 * i) for i, p in enumerate(parts))
    return f"{total % (1 << 128):032x}"


def key_words(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Keys as a (N, 2) array of little-endian 64-bit words, without a Python object per key."""
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    parts = []
    for chunk in chunks:
        buffer = chunk.buffers()[1]
        if buffer is not None and len(chunk):
            words = np.frombuffer(buffer, dtype="<u8")[chunk.offset * 2 : (chunk.offset + len(chunk)) * 2]
            parts.append(words.reshape(-1, 2))
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.uint64)


def _mix(word: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


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

    def uri(self, dataset: str) -> str:
        """Address of a dataset."""
        return self.bucket.url(f"datasets/{dataset}.lance")

    def open(self, snapshot: Snapshot) -> lance.LanceDataset:
        """The dataset at exactly this version; found by name under this root, since roots can move."""
        return self._dataset(snapshot.name, snapshot.version)

    def _dataset(self, dataset: str, version: int | None = None) -> lance.LanceDataset:
        return lance.dataset(self.uri(dataset), version=version, storage_options=self.bucket.storage_options())

    def exists(self, dataset: str) -> bool:
        """Whether the dataset has any version."""
        return any(True for _ in self.bucket.entries(f"datasets/{dataset}.lance/_versions"))

    def head(self, dataset: str) -> int:
        """The newest version, or 0 where there is none."""
        return self._dataset(dataset).version if self.exists(dataset) else 0

    # --- reading -------------------------------------------------------------------------------------------

    def scan(
        self, snapshot: Snapshot, columns: Mapping[str, str] | Sequence[str], where: str | None = None
    ) -> pa.Table:
        """Columns (or named SQL expressions) of the rows that pass, in stable order; never blob payloads."""
        wanted = dict(columns) if isinstance(columns, Mapping) else list(columns)
        return self.open(snapshot).to_table(columns=wanted, filter=where)

    def take(self, snapshot: Snapshot, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Rows at positions of the snapshot's order; blob columns as bytes."""
        dataset = self.open(snapshot)
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

    # --- staging and publishing ----------------------------------------------------------------------------

    def stage(self, dataset: str, rows: Sequence[Mapping[str, Any]], own: pa.Schema) -> Staged:
        """Write rows as fragments that no version names yet."""
        if not rows:
            return Staged((), {}, 0)
        return self.stage_table(dataset, to_table(rows, own), own)

    def stage_table(self, dataset: str, table: pa.Table, own: pa.Schema) -> Staged:
        """As `stage`, for a table already in the dataset's schema."""
        fragments = write_fragments(
            table,
            self.uri(dataset),
            schema=full_schema(own),
            max_rows_per_file=MAX_ROWS_PER_FILE,
            storage_options=self.bucket.storage_options(),
        )
        files: dict[str, int] = {}
        for file in (file for fragment in fragments for file in fragment.files):
            data = f"datasets/{dataset}.lance/data/{file.path}"
            files[data] = file.file_size_bytes or self.bucket.size(data) or 0
            files |= {blob.path: blob.size_bytes for blob in self.bucket.entries(data.removesuffix(".lance"))}
        return Staged(tuple(json.dumps(f.to_json()) for f in fragments), files, table.num_rows)

    def intact(self, files: Mapping[str, int]) -> bool:
        """Whether every staged file is there with the size that its writer noted."""
        return all(self.bucket.size(path) == size for path, size in files.items())

    def tagged(self, dataset: str) -> set[int]:
        """Versions that a tag pins."""
        return {tag["version"] for tag in self._dataset(dataset).tags.list().values()}

    def files(self, dataset: str) -> list[tuple[int, str]]:
        """(version, path below the dataset) of every file that any version names."""
        table = self._dataset(dataset).tracked_files().read_all()
        return list(zip(table["version"].to_pylist(), table["path"].to_pylist(), strict=True))

    def find(self, dataset: str, stamp: str, since: int) -> int | None:
        """The version after `since` that carries our stamp: our own commit, whose reply may have been lost."""
        if not self.exists(dataset):
            return None
        head = self._dataset(dataset)
        for version in range(head.version, since, -1):
            transaction = head.read_transaction(version)
            if transaction and (transaction.transaction_properties or {}).get(STAMP) == stamp:
                return version
        return None

    def publish_full(self, dataset: str, own: pa.Schema, staged: Sequence[str], stamp: str, since: int) -> int:
        """Commit a version that holds exactly the staged fragments."""
        new = [FragmentMetadata.from_json(f) for f in staged]
        for attempt in range(COMMIT_TRIES):
            found = self.find(dataset, stamp, since)
            if found is None:
                operation = LanceOperation.Overwrite(full_schema(own), new)
                self._try_commit(dataset, operation, self.head(dataset), stamp, attempt)
                continue
            self._verify(dataset, found, _files(new), sum(f.physical_rows for f in new))
            return found
        raise RunError(
            f"{dataset} could not be committed in {COMMIT_TRIES} tries: another writer is at work, run again"
        )

    def publish_incremental(
        self, base: Snapshot, dropped: Mapping[int, Sequence[int]], staged: Sequence[str], stamp: str
    ) -> int:
        """Commit base rows minus `dropped` (fragment id to row addresses) plus the staged fragments.

        HEAD is brought to the base first (`Restore`, harmless if we die), then an `Update` that names every base
        fragment makes the commit a compare-and-swap.
        """
        new = [FragmentMetadata.from_json(f) for f in staged]
        for attempt in range(COMMIT_TRIES):
            found = self.find(base.name, stamp, base.version)
            if found is not None:
                rows = base.rows - sum(map(len, dropped.values())) + sum(f.physical_rows for f in new)
                self._verify(base.name, found, None, rows)
                return found
            head = self._dataset(base.name)
            source = self.open(base)
            if _layout(head) != _layout(source):
                restore = LanceOperation.Restore(base.version)
                self._try_commit(base.name, restore, head.version, f"restore for {stamp}", attempt)
                crash_point("restored", base.name)
                continue
            self._try_commit(base.name, _update(head, dropped, new), head.version, stamp, attempt)
        raise RunError(
            f"{base.name} could not be committed in {COMMIT_TRIES} tries: another writer is at work, run again"
        )

    def _try_commit(self, dataset: str, operation: Any, read_version: int, stamp: str, attempt: int = 0) -> None:
        """Commit once; neither a refusal nor a lost reply is an error here: the caller looks for its stamp anyway."""
        transaction = lance.Transaction(
            read_version=read_version, operation=operation, transaction_properties={STAMP: stamp}
        )
        crash_point("committing", dataset)
        try:
            lance.LanceDataset.commit(
                self.uri(dataset), transaction, max_retries=0, storage_options=self.bucket.storage_options()
            )
        except CommitConflictError:
            return
        except OSError as error:
            # a first version that somebody else made meanwhile is refused as "version 0 was not found"
            overtaken = read_version == 0 and self.exists(dataset)
            if not (overtaken or is_lost_put(error)):
                raise
            wait(attempt)

    def _verify(self, dataset: str, version: int, files: set[str] | None, rows: int | None) -> None:
        opened = self._dataset(dataset, version)
        if rows is not None and opened.count_rows() != rows:
            raise RunError(f"{dataset}@{version} holds {opened.count_rows()} rows where {rows} were staged: run again with --force")  # fmt: skip  # noqa: E501
        if files is not None and {p for f in opened.get_fragments() for p in _paths(f.metadata)} != files:
            raise RunError(f"{dataset}@{version} names other files than were staged: run again with --force")

    def snapshot(self, dataset: str, version: int) -> Snapshot:
        """Read a published version back: its keys must be unique; their digest names it."""
        keys = self._dataset(dataset, version).to_table(columns=["key"])["key"]
        words = key_words(keys)
        if len(np.unique(words, axis=0)) != len(words):
            raise RunError(f"{dataset}@{version} has the same key twice: the stage's `content` does not name its rows")
        return Snapshot(dataset, self.uri(dataset), version, digest_of(keys), len(words))

    def tag(self, snapshot: Snapshot, name: str) -> None:
        """Pin a version against clean-up; a tag that exists already points there."""
        dataset = self.open(snapshot)
        for attempt in range(COMMIT_TRIES):
            if name in dataset.tags.list():
                return
            try:
                dataset.tags.create(name, snapshot.version)
            except OSError as error:
                if not is_lost_put(error):
                    raise
                wait(attempt)
        raise RunError(f"{snapshot.name}@{snapshot.version} could not be tagged in {COMMIT_TRIES} tries: run again")

    def untag(self, snapshot: Snapshot, prefix: str) -> None:
        """Take this version's pins of that name away."""
        dataset = self._dataset(snapshot.name)
        for name, tag in dataset.tags.list().items():
            if name.startswith(prefix) and tag["version"] == snapshot.version:
                dataset.tags.delete(name)

    def rewrite_deleted(self, base: Snapshot, stamp: str) -> int | None:
        """Publish the same rows with every half-deleted fragment written anew; None where there is none."""
        dataset = self.open(base)
        holed = [f for f in dataset.get_fragments() if f.metadata.deletion_file is not None]
        if not holed:
            return None
        ids = np.asarray(dataset.scanner(columns=["key"], with_row_address=True).to_table()["_rowaddr"]) >> 32
        at = np.flatnonzero(np.isin(ids, [f.fragment_id for f in holed]))
        plain = pa.schema([f for f in dataset.schema if f.name not in (KEY.name, PARENTS.name, LABEL.name)])
        own = pa.schema([_as_declared(f) for f in plain])
        rows = self.take(base, at.tolist(), dataset.schema.names).to_pylist()
        staged = self.stage(base.name, rows, own).fragments
        return self.publish_incremental(base, self.addresses(base, at), staged, stamp)


def _as_declared(field: pa.Field) -> pa.Field:
    """A column of a dataset as its stage declared it."""
    if isinstance(field.type, pa.ExtensionType):
        return pa.field(field.name, pa.large_binary(), metadata={b"plait.blob": b"v2"})
    return field


class SnapshotReader:
    """Random access to chosen rows of a snapshot; picklable: each process opens the dataset itself."""

    def __init__(self, bucket: Bucket, snapshot: Snapshot, positions: np.ndarray | None) -> None:
        self.bucket = bucket
        self.snapshot = snapshot
        self.positions = positions

    def __len__(self) -> int:
        return self.snapshot.rows if self.positions is None else len(self.positions)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at these positions, in the order asked for; blob columns as bytes."""
        at = [int(r) if self.positions is None else int(self.positions[r]) for r in rows]
        return Store(self.bucket).take(self.snapshot, at, columns)

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


def _paths(fragment: FragmentMetadata) -> list[str]:
    return [file.path for file in fragment.files]


def _files(fragments: Sequence[FragmentMetadata]) -> set[str]:
    return {path for fragment in fragments for path in _paths(fragment)}


def _layout(dataset: lance.LanceDataset) -> list[tuple[Any, ...]]:
    """Which files and deletions make up a version: equal layouts are equal contents."""
    return [(f.fragment_id, tuple(_paths(f.metadata)), str(f.metadata.deletion_file)) for f in dataset.get_fragments()]


def _update(head: lance.LanceDataset, dropped: Mapping[int, Sequence[int]], new: list[FragmentMetadata]) -> Any:
    removed, kept = [], []
    for fragment in head.get_fragments():
        gone = dropped.get(fragment.fragment_id, ())
        if gone and len(gone) == fragment.count_rows():
            removed.append(fragment.fragment_id)
            continue
        metadata = fragment.metadata
        if gone:
            metadata = fragment.delete(f"_rowaddr in ({', '.join(map(str, gone))})") or metadata
        kept.append(metadata)
    return LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=kept, new_fragments=new)
