"""Many small fragments into few: before a commit, from files that no version names yet; after it, from a version.

A fragment of a dataset with blob columns is merged only after the commit and on demand: its bytes would travel twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from infra.commits import publish_incremental
from infra.store import KEY, LABEL, PARENTS, Staged, Store, blob_names, declared, full_schema
from infra.types import Snapshot

SMALL_BYTES = 64 << 20
GROUP_BYTES = 256 << 20
GROUP_ROWS = 1 << 20
FEW_FRAGMENTS = 256
"""So many small fragments stay as they are: one request each costs less than writing them again."""
BATCH_ROWS = 8192
BLOB_BATCH_ROWS = 32


def groups(fragments: Sequence[str], own: pa.Schema) -> list[list[str]]:
    """Staged fragments (FragmentMetadata as JSON) that are to become one each, in their order; one alone stays."""
    sized = [(f, FragmentMetadata.from_json(f)) for f in fragments]
    num_small = sum(_bytes(metadata) < SMALL_BYTES for _, metadata in sized)
    if num_small <= FEW_FRAGMENTS or blob_names(own):
        return [[f] for f in fragments]
    found: list[list[str]] = []
    room_bytes = room_rows = 0
    for text, metadata in sized:
        size, rows = _bytes(metadata), metadata.physical_rows
        if not found or size > room_bytes or rows > room_rows:
            found.append([])
            room_bytes, room_rows = GROUP_BYTES, GROUP_ROWS
        found[-1].append(text)
        room_bytes, room_rows = room_bytes - size, room_rows - rows
    return found


def _bytes(metadata: FragmentMetadata) -> int:
    return sum(file.file_size_bytes or 0 for file in metadata.files)


def merge_staged(store: Store, dataset: str, fragments: Sequence[str], own: pa.Schema) -> Staged:
    """Write the rows of staged fragments, in their order, as one."""
    schema = full_schema(own)

    def batches() -> Iterator[pa.RecordBatch]:
        for fragment in fragments:
            for file in FragmentMetadata.from_json(fragment).files:
                uri = f"{store.uri(dataset)}/data/{file.path}"
                reader = LanceFileReader(uri, storage_options=store.bucket.storage_options())
                for batch in reader.read_all(batch_size=BATCH_ROWS).to_batches():
                    yield batch.select(schema.names).cast(schema)

    return store.stage_batches(dataset, pa.RecordBatchReader.from_batches(schema, batches()), own)


def rewrite(store: Store, base: Snapshot, stamp: str, small_too: bool = False) -> int | None:
    """Publish the same rows with every half-deleted fragment written anew; None where there is none.

    With `small_too` small fragments are written anew as well, as one. Keys, parents and blobs stay what they are.
    """
    dataset, head = store.open(base), store.head(base.name)
    fragments = dataset.get_fragments()
    chosen = [f.fragment_id for f in fragments if f.metadata.deletion_file is not None]
    if small_too:
        small = [f.fragment_id for f in fragments if _bytes(f.metadata) < SMALL_BYTES]
        chosen += small if len(small) > 1 else []
    if not chosen:
        return None
    ids = np.asarray(dataset.scanner(columns=["key"], with_row_address=True).to_table()["_rowaddr"]) >> 32
    at = np.flatnonzero(np.isin(ids, chosen))
    own = declared(pa.schema([f for f in dataset.schema if f.name not in (KEY.name, PARENTS.name, LABEL.name)]))
    names = full_schema(own).names

    def batches() -> Iterator[pa.RecordBatch]:
        step = BLOB_BATCH_ROWS if blob_names(own) else BATCH_ROWS
        for start in range(0, len(at), step):
            table = store.take(base, at[start : start + step].tolist(), names)
            yield from store.with_blobs(table, own).combine_chunks().to_batches()

    new = pa.RecordBatchReader.from_batches(full_schema(own), batches())
    staged = store.stage_batches(base.name, new, own).fragments
    return publish_incremental(store, base, store.addresses(base, at), staged, stamp, head)
