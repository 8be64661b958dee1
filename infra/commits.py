"""Publishing Lance versions by compare-and-swap, each recognised by a stamp of our own.

Facts that this file stands on, each probed on pylance 14 (docs/decisions/0002-commit.md): a commit is not
idempotent; `Append` always rebases; an `Update` that names every base fragment is refused when any of them was
touched; Lance trusts the committer, so staged files are checked before; `create` is no mutex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from infra.faults import crash_point
from infra.store import Store, full_schema
from infra.types import RunError, Snapshot
from infra.world import is_lost_put, wait

STAMP = "plait.commit"
COMMIT_TRIES = 20


def find(store: Store, dataset: str, stamp: str, since: int) -> int | None:
    """The version after `since` that carries our stamp: our own commit, whose reply may have been lost."""
    if not store.exists(dataset):
        return None
    head = store.at(dataset)
    for version in range(head.version, since, -1):
        transaction = head.read_transaction(version)
        if transaction and (transaction.transaction_properties or {}).get(STAMP) == stamp:
            return version
    return None


def publish_full(store: Store, dataset: str, own: pa.Schema, staged: Sequence[str], stamp: str, since: int) -> int:
    """Commit a version that holds exactly the staged fragments; the version of that stamp if there is one already."""
    new = [FragmentMetadata.from_json(f) for f in staged]
    for attempt in range(COMMIT_TRIES):
        found = find(store, dataset, stamp, since)
        if found is not None:
            _verify(store, dataset, found, sum(f.physical_rows for f in new))
            return found
        overwrite = LanceOperation.Overwrite(full_schema(own), new)
        _try_commit(store, dataset, overwrite, store.head(dataset), stamp, attempt)
    raise _no_commit(dataset)


def publish_incremental(
    store: Store, base: Snapshot, dropped: Mapping[int, Sequence[int]], staged: Sequence[str], stamp: str, since: int
) -> int:
    """Commit base rows minus `dropped` (fragment id to row addresses) plus the staged fragments.

    HEAD is brought to the base first (`Restore`, harmless if we die), then an `Update` that names every base
    fragment makes the commit a compare-and-swap.
    """
    new = [FragmentMetadata.from_json(f) for f in staged]
    for attempt in range(COMMIT_TRIES):
        found = find(store, base.name, stamp, since)
        if found is not None:
            rows = base.rows - sum(map(len, dropped.values())) + sum(f.physical_rows for f in new)
            _verify(store, base.name, found, rows)
            return found
        head = store.at(base.name)
        if _layout(head) != _layout(store.open(base)):
            restore = LanceOperation.Restore(base.version)
            _try_commit(store, base.name, restore, head.version, f"restore for {stamp}", attempt)
            crash_point("restored", base.name)
            continue
        _try_commit(store, base.name, _update(head, dropped, new), head.version, stamp, attempt)
    raise _no_commit(base.name)


def _no_commit(dataset: str) -> RunError:
    return RunError(f"{dataset} could not be committed in {COMMIT_TRIES} tries: another writer is at work, run again")


def _try_commit(store: Store, dataset: str, operation: Any, read_version: int, stamp: str, attempt: int = 0) -> None:
    """Commit once; neither a refusal nor a lost reply is an error here: the caller looks for its stamp anyway."""
    transaction = lance.Transaction(
        read_version=read_version, operation=operation, transaction_properties={STAMP: stamp}
    )
    options = store.bucket.storage_options()
    crash_point("committing", dataset)
    try:
        lance.LanceDataset.commit(store.uri(dataset), transaction, max_retries=0, storage_options=options)
    except CommitConflictError:
        return
    except OSError as error:
        # a first version that somebody else made meanwhile is refused as "version 0 was not found"
        overtaken = read_version == 0 and store.exists(dataset)
        if not (overtaken or is_lost_put(error)):
            raise
        wait(attempt)


def _verify(store: Store, dataset: str, version: int, rows: int) -> None:
    """The rows that were staged, in number; the caller compares their digest when it reads the keys back."""
    found = store.at(dataset, version).count_rows()
    if found != rows:
        raise RunError(f"{dataset}@{version} holds {found} rows where {rows} were staged: run again with --force")


def _layout(dataset: lance.LanceDataset) -> list[tuple[Any, ...]]:
    """Which files and deletions make up a version: equal layouts are equal contents."""
    fragments = [f.metadata for f in dataset.get_fragments()]
    return [(f.id, tuple(file.path for file in f.files), str(f.deletion_file)) for f in fragments]


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
