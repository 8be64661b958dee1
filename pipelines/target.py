"""What a person points at: a dataset, a version, a checkpoint, a row or a raw file, by any of its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.ledger import snapshot_of
from infra.types import UserError
from pipelines.standing import Standing

KEY_TYPE = pa.binary(16)
MIN_PREFIX = 4


@dataclass(frozen=True)
class Target:
    """What a person pointed at: some rows of one materialisation (None: all of them)."""

    done: Mapping[str, Any]
    keys: pa.Array | None
    label: str


class Finder:
    """Looks for targets in one root: what stands first, then older materialisations."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.store = standing.store

    def find(self, target: str) -> Target:
        """A dataset, dataset@version, checkpoint, row key (or its unique beginning) or raw file."""
        name, at, version = target.partition("@")
        if at and version.isdigit() and name in self.standing.all:
            return Target(self.standing.at(name, int(version)), None, target)
        if target in self.standing.dones:
            return Target(self.standing.done(target), None, target)
        for look in (self._checkpoint, self._file, self._row):
            if found := look(target):
                return found
        if "=" in target:
            raise UserError(
                f"{target!r} is a setting: name what it is about before it, as in `plait lineage model {target}`"
            )
        made = ", ".join(self.standing.order())
        raise UserError(f"{target!r} is nothing that {self.standing.root.uri} knows: give a dataset ({made}), dataset@version, a checkpoint, a row's key or a raw file")  # fmt: skip  # noqa: E501

    def _checkpoint(self, target: str) -> Target | None:
        if "step-" not in target:
            return None
        for dones in self.standing.all.values():
            for done in reversed(dones):
                if not self._has(done, "manifest"):
                    continue
                table = self.store.scan(snapshot_of(done), ["key", "manifest"])
                for key, manifest in zip(table["key"].to_pylist(), table["manifest"].to_pylist(), strict=True):
                    bare = manifest.removesuffix(".json")
                    if target.rstrip("/").endswith((manifest, bare)) or bare.endswith(f"/{target}"):
                        return Target(done, pa.array([key], KEY_TYPE), manifest)
        return None

    def _file(self, target: str) -> Target | None:
        for done in self._listings():
            table = self.store.scan(snapshot_of(done), ["key", "path"])
            ends = [i for i, p in enumerate(table["path"].to_pylist()) if target == p or target.endswith(f"/{p}")]
            if ends:
                longest = max(ends, key=lambda i: len(table["path"][i].as_py()))
                return Target(done, pa.array([table["key"][longest].as_py()], KEY_TYPE), table["path"][longest].as_py())
        return None

    def _listings(self) -> Iterator[Mapping[str, Any]]:
        """Materialisations that list a source, the standing one of each first."""
        stands = {done["key"] for done in self.standing.dones.values()}
        yield from sorted(reversed(self.standing.listings()), key=lambda d: d["key"] not in stands)

    def _row(self, target: str) -> Target | None:
        found = self.rows_with_prefix(target)
        if len(found) > 1:
            several = ", ".join(f"{k.hex()[:12]} ({d['dataset']})" for d, k in found[:4])
            raise UserError(f"{target!r} begins several keys ({several}): give more digits")
        if found:
            done, key = found[0]
            return Target(done, pa.array([key], KEY_TYPE), key.hex())
        return None

    def rows_with_prefix(self, prefix: str) -> list[tuple[Mapping[str, Any], bytes]]:
        """Rows whose key begins with these hex digits: standing materialisations first, then older ones."""
        text = prefix.lower()
        if not MIN_PREFIX <= len(text) <= 32 or any(c not in "0123456789abcdef" for c in text):
            return []
        low, high = (int(text.ljust(32, c), 16).to_bytes(16, "big") for c in "0f")
        where = f"key >= X'{low.hex()}' and key <= X'{high.hex()}'"
        found: dict[bytes, Mapping[str, Any]] = {}
        dones = [*self.standing.dones.values(), *(d for ds in self.standing.all.values() for d in reversed(ds))]
        for done in dones:
            for key in self.store.scan(snapshot_of(done), ["key"], where)["key"].to_pylist():
                found.setdefault(key, done)
        return [(done, key) for key, done in found.items()]

    def _has(self, done: Mapping[str, Any], column: str) -> bool:
        return column in self.store.open(snapshot_of(done)).schema.names
