"""Takedown: raw content is denied for good, everything derived from it is dropped, and what it tainted is named.

    deny     ledger/denied/<sha256>.json, write-once; the planner leaves denied content out of every reader of the
             listing, so the rows derived from it are dropped by their parents, and nothing brings them back
    purge    rewrite the fragments that still hold dropped rows, retire older versions that hold them, collect
Packs and checkpoints that were made of it stay until the next run makes new ones: they are named and tagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra.ledger import FORGOTTEN, snapshot_of
from infra.types import UserError, now_utc
from pipelines import compaction, gc
from pipelines.lineage import Lineage
from pipelines.standing import Standing
from pipelines.target import Finder, Target

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

MAX_FILES = 1


@dataclass
class Takedown:
    """What is to be forgotten and what it reached."""

    digests: list[str]
    labels: list[str]
    derived: dict[str, set[bytes]] = field(default_factory=dict)
    """Keys of derived rows by dataset, over every materialisation."""
    checkpoints: list[str] = field(default_factory=list)
    """Manifests of checkpoints that saw it."""

    def to_json(self) -> dict[str, Any]:
        """The report of `plait forget --json`."""
        packs = sorted(key.hex() for key in self.derived.get("packs", ()))
        return {
            "digests": self.digests,
            "files": self.labels,
            "derived": {name: len(keys) for name, keys in self.derived.items()},
            "tainted": {"packs": packs, "checkpoints": self.checkpoints},
        }


def find(standing: Standing, target: str) -> Takedown:
    """The raw content behind a file or a row's key, and all that came of it. Changes nothing."""
    lineage = Lineage(standing)
    found = Finder(standing).find(target)
    if found.keys is None:
        raise UserError(f"{target!r} is a whole dataset: give a raw file, or the key of a row that came from one")
    files = _raw_files(standing, Lineage(standing, sides=False), found)
    if len(files) != MAX_FILES:
        raise UserError(f"{target!r} came from {len(files)} raw files: name the file to forget")
    listed, key, path, digest = files[0]
    down = lineage.down(Target(listed, pa.array([key], pa.binary(16)), path))
    takedown = Takedown([digest], [path])
    rows = {bytes.fromhex(n["id"][4:]) for n in down.nodes.values() if n["kind"] == "row"}
    for name, dones in standing.all.items():
        for done in dones:
            keys = standing.store.scan(snapshot_of(done), ["key"])["key"]
            hit = keys.filter(pc.is_in(keys, value_set=pa.array(sorted(rows), pa.binary(16)))).to_pylist()
            if hit:
                takedown.derived.setdefault(name, set()).update(hit)
    takedown.checkpoints = [n["id"].partition(":")[2] for n in down.nodes.values() if n["kind"] == "checkpoint"]
    return takedown


def _raw_files(standing: Standing, lineage: Lineage, found: Target) -> list[tuple[Mapping[str, Any], bytes, str, str]]:
    """(materialisation of the listing, key, path, digest) of each distinct content behind a target."""
    paths = {n["label"] for n in lineage.up(found).nodes.values() if n["kind"] == "file"}
    by_digest: dict[str, tuple[Mapping[str, Any], bytes, str, str]] = {}
    for done in standing.listings():
        for row in standing.store.scan(snapshot_of(done), ["key", "path", "digest"]).to_pylist():
            if row["path"] in paths:
                by_digest.setdefault(row["digest"], (done, row["key"], row["path"], row["digest"]))
    return list(by_digest.values())


def deny(standing: Standing, takedown: Takedown) -> None:
    """Put the content on the deny list; from now on no run reads it."""
    for digest, label in zip(takedown.digests, takedown.labels, strict=True):
        standing.ledger.deny(digest, {"label": label, "at": now_utc()})


def old_versions(standing: Standing, takedown: Takedown) -> list[dict[str, Any]]:
    """Versions of row datasets, other than the standing ones, that still hold derived rows."""
    found: list[dict[str, Any]] = []
    for name, keys in takedown.derived.items():
        wanted = pa.array(sorted(keys), pa.binary(16))
        for done in standing.all[name]:
            if done["key"] == standing.dones[name]["key"]:
                continue
            here = standing.store.scan(snapshot_of(done), ["key"])["key"]
            if pc.any(pc.is_in(here, value_set=wanted)).as_py():
                found.append({"dataset": name, "version": done["snapshot"]["version"], "key": done["key"]})
    return found


def purge(standing: Standing, takedown: Takedown, row_datasets: Sequence[str]) -> int:
    """Remove the bytes: retire old versions of the row datasets, rewrite half-deleted fragments, collect.

    Returns the number of bytes freed.
    """
    for version in old_versions(standing, takedown):
        if version["dataset"] in row_datasets:
            _retire(standing, version)
    for name in row_datasets:
        if name in takedown.derived:
            compaction.rewrite(standing, standing.done(name), small_too=False)
    return gc.collect(standing.root, gc.find(standing.root))


def _retire(standing: Standing, version: Mapping[str, Any]) -> None:
    """The materialisation's next `done` says that it is gone; its tags go, so that gc finds the files."""
    folder = standing.ledger.folder(version["dataset"], version["key"])
    for done in standing.ledger.history(version["dataset"], version["key"]):
        standing.store.untag(snapshot_of(done), f"m.{version['key']}.")
    number = folder.last("done")
    last = folder.get(f"done.{number}") or {}
    gone = {"state": FORGOTTEN, "why": FORGOTTEN, "number": number + 1, "at": now_utc()}
    folder.put(f"done.{number + 1}", last | gone)
