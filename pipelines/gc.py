"""What nothing names any more: files of lost races, dead tries and superseded restores.

By reachability, and never by Lance's own cleanup, whose defaults delete the staged files of live work.
    roots   the version of every `done`, each dataset's HEAD, tags, what unfinished plans staged and read, manifests
    garbage any other file of a dataset, and checkpoint folders that no manifest names
A living claim stops the collection: its files are not yet named by anything.
"""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.bucket import Bucket
from infra.ledger import Folder, Ledger, is_dead
from infra.store import Store
from infra.types import RunError
from pipelines import shards

QUIET_S = 900.0
NOT_DATA = ("_refs/", "_versions/latest_version_hint.json")


@dataclass(frozen=True)
class Garbage:
    """One object that can go."""

    path: str
    size_bytes: int
    why: str


def find(root: Bucket) -> list[Garbage]:
    """All garbage of a root; nothing is deleted."""
    ledger, store = Ledger(root), Store(root)
    datasets = ledger.datasets()
    for name in datasets:
        for folder in _folders(ledger, name):
            _refuse_while_alive(folder)
    pinned = _pinned_by_unfinished(ledger, datasets)
    found = [g for name in datasets if store.exists(name) for g in _of_dataset(root, ledger, store, name, pinned)]
    return found + _of_checkpoints(root)


def collect(root: Bucket, garbage: list[Garbage]) -> int:
    """Delete it; the number of bytes freed."""
    for item in garbage:
        root.delete(item.path)
    return sum(item.size_bytes for item in garbage)


def _folders(ledger: Ledger, dataset: str) -> list[Folder]:
    prefix = f"ledger/{dataset}"
    keys = {name[len(prefix) + 1 :].partition("/")[0] for name in ledger.bucket.names(prefix)}
    return [ledger.folder(dataset, key) for key in sorted(keys)]


def _refuse_while_alive(folder: Folder) -> None:
    number = folder.last("claim")
    holder: dict[str, Any] | None = folder.get(f"claim.{number}") if number else None
    if holder and not holder.get("released") and _may_live(folder, number, holder):
        raise RunError(
            f"{folder.dataset} is being made by process {holder['pid']} on {holder['host']}:"
            " wait until it ends, then `plait gc`"
        )


def _may_live(folder: Folder, number: int, holder: dict[str, Any]) -> bool:
    """Here: by the process table. Elsewhere: unless its heartbeat is QUIET_S old by the clocks of both."""
    if holder["host"] == socket.gethostname():
        return not is_dead(holder, folder, number, {})
    beat = folder.bucket.get(f"{folder.path}/beat.{number}")
    last = datetime.datetime.fromisoformat(beat.decode() if beat else holder["at"])
    return (datetime.datetime.now(datetime.UTC) - last).total_seconds() < QUIET_S


def _of_dataset(root: Bucket, ledger: Ledger, store: Store, name: str, pinned: Mapping[str, set[int]]) -> list[Garbage]:
    kept_versions = {store.head(name), *store.tagged(name), *pinned.get(name, set())}
    staged: set[str] = set()
    for folder in _folders(ledger, name):
        kept_versions |= {done["snapshot"]["version"] for done in ledger.history(name, folder.key)}
        staged |= _staged_by_unfinished(folder)
    kept = {path for version, path in store.files(name) if version in kept_versions}
    kept |= {f"data/{path}" for path in staged}
    stems = {path.removesuffix(".lance") for path in kept if path.endswith(".lance")}
    cut = len(f"datasets/{name}.lance/")
    garbage: list[Garbage] = []
    for entry in root.entries(f"datasets/{name}.lance"):
        path = entry.path[cut:]
        sidecar = path.rsplit("/", 1)[0] in stems  # blobs lie in a folder named after their data file
        if path not in kept and not sidecar and not path.startswith(NOT_DATA):
            why = "version that nothing published" if path.startswith("_versions/") else "file that no version names"
            garbage.append(Garbage(entry.path, entry.size_bytes, why))
    return garbage


def _pinned_by_unfinished(ledger: Ledger, datasets: Sequence[str]) -> dict[str, set[int]]:
    """Versions that a resumed run would read: the inputs and the base of every unfinished plan."""
    found: dict[str, set[int]] = {}
    for name in datasets:
        for folder in _folders(ledger, name):
            if number := folder.unfinished_plan():
                plan = shards.read(folder, number)
                for snapshot in plan.inputs.values():
                    found.setdefault(snapshot.name, set()).add(snapshot.version)
                found.setdefault(name, set()).add(plan.base_version)
    return found


def _staged_by_unfinished(folder: Folder) -> set[str]:
    """Data files of finished shards whose plan is not published yet: a resumed run needs them."""
    number = folder.unfinished_plan()
    if not number:
        return set()
    shards = [folder.get(n) or {"fragments": []} for n in folder.names() if n.startswith(f"shard.{number}.")]
    return {file["path"] for s in shards for f in s["fragments"] for file in json.loads(f)["files"]}


def _of_checkpoints(root: Bucket) -> list[Garbage]:
    entries = list(root.entries("checkpoints"))
    manifests = [e.path for e in entries if e.path.count("/") == 3 and e.path.endswith(".json")]
    named = {json.loads(root.get(m) or b"{}").get("folder") for m in manifests}
    return [
        Garbage(e.path, e.size_bytes, "checkpoint that no manifest names")
        for e in entries
        if e.path not in manifests and "/".join(e.path.split("/")[:4]) not in named
    ]
