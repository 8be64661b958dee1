"""Rows by name, and what one was made of and what was made of it: over what stands, a bounded number of rows a dataset.

`pipelines.lineage` walks whole snapshots for `plait lineage`; here every step is a filter that Lance answers, so a row
among millions is traced without a column of them in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.explorer.root import MAX_PAGE, Root, has_parent, key_literals, literal
from infra.ledger import snapshot_of
from infra.types import UserError
from pipelines.target import Finder

WALKED = 120
"""Rows of a dataset whose parents and children are looked for."""
CUT_TEXT = 2000


class Walk:
    """One answer: levels of rows by dataset, and edges along the flow of the data."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.standing = root.standing()
        self.levels: dict[str, dict[str, Any]] = {}
        self.edges: dict[tuple[str, str], None] = {}

    def add(self, done: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], total: int, depth: int) -> list[bytes]:
        """Show rows of a materialisation; the keys that are new."""
        name = f"{done['dataset']}@{done['snapshot']['version']}"
        level = self.levels.setdefault(name, self._level(done, depth))
        level["total"] = max(level["total"], total)
        known = {row["key"] for row in level["rows"]}
        fresh = [row for row in rows if row["key"].hex() not in known]
        for row in fresh:
            shown = {k: row[k] for k in ("label", "path", "step", "text") if row.get(k) is not None}
            level["rows"].append({"key": row["key"].hex(), **shown})
        return [row["key"] for row in fresh]

    def whole(self, done: Mapping[str, Any], depth: int) -> None:
        """Show that all of a snapshot takes part."""
        name = f"{done['dataset']}@{done['snapshot']['version']}"
        self.levels.setdefault(name, self._level(done, depth))["whole"] = True

    @staticmethod
    def _level(done: Mapping[str, Any], depth: int) -> dict[str, Any]:
        snapshot = done["snapshot"]
        about = {"dataset": done["dataset"], "version": snapshot["version"], "snapshot_rows": snapshot["rows"]}
        return {**about, "depth": depth, "place": 0, "whole": False, "total": 0, "rows": []}

    # --- back ----------------------------------------------------------------------------------------------

    def up(self, done: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], depth: int) -> None:
        """What these rows were made of."""
        is_checkpoint = any("manifest" in row for row in rows)
        parents = list(dict.fromkeys(p for row in rows for p in row["parents"]))[:WALKED]
        for given in done["inputs"].values():
            before = self.standing.of_input(given)
            if before is None or given["role"] in ("select", "parent"):
                continue
            name = f"{done['dataset']}@{done['snapshot']['version']}"
            if is_checkpoint or given["role"] != "rows":
                self.whole(before, depth - 1)
                self.edges[(f"{before['dataset']}@{before['snapshot']['version']}", name)] = None
                if is_checkpoint:
                    self._snapshots_above(before, depth - 1)
                continue
            if not parents:
                continue
            found = self._rows(before, f"{given['unit']} in ({key_literals(parents)})")
            by_unit: dict[bytes, list[str]] = {}
            for row in found:
                by_unit.setdefault(row[given["unit"]], []).append(row["key"].hex())
            for row in rows:
                for parent in row["parents"]:
                    self.edges |= {(one, row["key"].hex()): None for one in by_unit.get(parent, [])}
            new = set(self.add(before, found, len(found), depth - 1)) if found else set[bytes]()
            if new:
                self.up(before, [row for row in found if row["key"] in new], depth - 1)

    def _snapshots_above(self, done: Mapping[str, Any], depth: int) -> None:
        for given in done["inputs"].values():
            before = self.standing.of_input(given)
            if before is None or given["role"] in ("select", "parent"):
                continue
            name = f"{before['dataset']}@{before['snapshot']['version']}"
            edge = name, f"{done['dataset']}@{done['snapshot']['version']}"
            if edge not in self.edges:
                self.edges[edge] = None
                self.whole(before, depth - 1)
                self._snapshots_above(before, depth - 1)

    # --- forward -------------------------------------------------------------------------------------------

    def down(self, done: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], depth: int) -> None:
        """What was made of these rows, in what stands."""
        for reader in self.standing.dones.values():
            given = reader["inputs"].get(done["dataset"])
            if given is None or given["role"] in ("select", "parent"):
                continue
            if given["role"] == "side" or "manifest" in self.root.columns(snapshot_of(reader)):
                self._reach(reader, given, rows, depth)
                continue
            units = {row[given["unit"]]: row["key"].hex() for row in rows if row.get(given["unit"]) is not None}
            if units:
                self._children(reader, units, depth)

    def _children(self, reader: Mapping[str, Any], units: Mapping[bytes, str], depth: int) -> None:
        """Rows of a reader that were made of these units, and what was made of those."""
        where = has_parent(list(units)[:WALKED])
        found = self._rows(reader, where)
        if not found:
            return
        for row in found:
            self.edges |= {(units[parent], row["key"].hex()): None for parent in row["parents"] if parent in units}
        total = self.root.count(snapshot_of(reader), where) if len(found) >= WALKED else len(found)
        new = set(self.add(reader, found, total, depth + 1))
        if new:
            self.down(reader, [row for row in found if row["key"] in new], depth + 1)

    def _reach(self, reader: Mapping[str, Any], given: Any, rows: Sequence[Mapping[str, Any]], depth: int) -> None:
        """A job read a whole snapshot: what it made was made of these rows too, if the snapshot holds one of them."""
        before = self.standing.of_input(given)
        name = f"{reader['dataset']}@{reader['snapshot']['version']}"
        if before is None:
            return
        keys = [row["key"] for row in rows][:WALKED]
        held = self._rows(before, f"key in ({key_literals(keys)})")
        if not held:
            return
        self.edges |= {(row["key"].hex(), name): None for row in held}
        if name in self.levels:
            return
        self.whole(reader, depth + 1)
        if "manifest" in self.root.columns(snapshot_of(reader)):
            found = self._rows(reader, None)
            self.add(reader, found, reader["snapshot"]["rows"], depth + 1)
            for after in self.standing.dones.values():
                role = after["inputs"].get(reader["dataset"], {}).get("role")  # what only used it is not made of it
                if role == "rows" and "manifest" not in self.root.columns(snapshot_of(after)):
                    self.whole(after, depth + 2)
                    self.edges[(name, f"{after['dataset']}@{after['snapshot']['version']}")] = None

    def _rows(self, done: Mapping[str, Any], where: str | None) -> list[dict[str, Any]]:
        columns = ("key", "parents", "label", "path", "unit", "manifest", "step")
        return self.root.page(snapshot_of(done), columns, where, WALKED)

    def to_json(self) -> dict[str, Any]:
        """Levels from raw files to checkpoints."""
        order = {name: place for place, name in enumerate(self.standing.order())}
        for level in self.levels.values():
            level["place"] = order.get(level["dataset"], level["depth"])
        ordered = sorted(self.levels.values(), key=lambda level: level["place"])
        return {"levels": ordered, "edges": [list(e) for e in self.edges]}


def lineage(root: Root, target: str, near: str = "") -> dict[str, Any]:
    """What a row, raw file, dataset or checkpoint was made of, and what was made of it; `near` is looked in first."""
    done, key = find(root, target, near)
    about = {"dataset": done["dataset"], "version": done["snapshot"]["version"], "rows": done["snapshot"]["rows"]}
    back, forth = Walk(root), Walk(root)
    if key is None:
        for walk in (back, forth):
            walk.whole(done, 0)
        back._snapshots_above(done, 0)
        return {"target": target, "key": None, **about, "up": back.to_json(), "down": _readers(forth, done)}
    rows = back._rows(done, f"key = X'{key.hex()}'")
    for walk in (back, forth):
        walk.add(done, rows, 1, 0)
    back.up(done, rows, 0)
    forth.down(done, rows, 0)
    label = rows[0].get("path") or rows[0].get("label") if rows else None
    return {"target": target, "key": key.hex(), "label": label, **about, "up": back.to_json(), "down": forth.to_json()}


def _readers(walk: Walk, done: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    name = f"{done['dataset']}@{done['snapshot']['version']}"
    for reader in walk.standing.dones.values():
        given = reader["inputs"].get(done["dataset"])
        edge = name, f"{reader['dataset']}@{reader['snapshot']['version']}"
        if given and edge not in walk.edges:
            walk.edges[edge] = None
            walk.whole(reader, depth + 1)
            _readers(walk, reader, depth + 1)
    return walk.to_json()


def find(root: Root, target: str, near: str = "") -> tuple[Mapping[str, Any], bytes | None]:
    """The materialisation and key that a person names: a dataset, dataset@version, raw file, checkpoint or key."""
    standing = root.standing()
    name, at, version = target.partition("@")
    if at and version.isdecimal() and name in standing.all:
        return standing.at(name, int(version)), None
    if target in standing.dones:
        return standing.done(target), None
    if found := _by_key(root, target, near):
        return found
    for done in standing.listings():
        rows = root.page(snapshot_of(done), ["key"], f"path = {literal(target)}", 1)
        if rows:
            return done, rows[0]["key"]
    if "step-" in target:
        seen = Finder(standing).find(target)
        return seen.done, seen.keys[0].as_py() if seen.keys is not None else None
    datasets = ", ".join(standing.order()) or "nothing has been made yet"
    raise UserError(f"{target[:80]!r} is nothing that {root.bucket.uri} knows: give a row's key, a raw file, a checkpoint or a dataset ({datasets})")  # fmt: skip  # noqa: E501


def _by_key(root: Root, target: str, near: str) -> tuple[Mapping[str, Any], bytes] | None:
    """A row by its key: by all of it in one dataset after the other, until it is found; by its beginning in all."""
    standing = root.standing()
    if len(target) == 32 and all(c in "0123456789abcdefABCDEF" for c in target):
        older = [d for dones in standing.all.values() for d in reversed(dones)]
        first = [standing.dones[near]] if near in standing.dones else []
        key = bytes.fromhex(target)
        for done in [*first, *standing.dones.values(), *older]:
            if root.page(snapshot_of(done), ["key"], f"key = X'{key.hex()}'", 1):
                return done, key
        return None
    found = Finder(standing).rows_with_prefix(target)
    if len(found) > 1:
        several = ", ".join(f"{k.hex()[:12]} ({d['dataset']})" for d, k in found[:4])
        raise UserError(f"{target[:40]!r} begins several keys ({several}): give more digits")
    return found[0] if found else None


# --- rows as they are ------------------------------------------------------------------------------------------


def rows(root: Root, target: str, words: str, offset: int, limit: int) -> dict[str, Any]:
    """A page of any dataset: plain columns, long values cut."""
    if not 0 < limit <= MAX_PAGE or offset < 0:
        raise UserError(f"a page has 1 to {MAX_PAGE} rows and begins at 0 or later")
    done, key = find(root, target)
    if key is not None:
        raise UserError(f"{target[:40]!r} is a row, not a dataset: see it in lineage")
    snapshot = snapshot_of(done)
    kinds = root.columns(snapshot)
    shown = [n for n, kind in kinds.items() if n != "parents" and not kind.startswith(("list", "fixed_size_list", "large_binary", "binary"))]  # fmt: skip  # noqa: E501
    where = " and ".join(f"contains(lower(label), {literal(w)})" for w in words.lower().split()) or None
    found = [{k: plain(v) for k, v in row.items()} for row in root.page(snapshot, shown, where, limit, offset)]
    return {
        "total": root.count(snapshot, where),
        "offset": offset,
        "dataset": snapshot.name,
        "version": snapshot.version,
        "columns": [{"name": n, "type": kinds[n]} for n in shown],
        "hidden": [n for n in (*kinds, *root.blobs(snapshot)) if n not in shown],
        "versions": [d["snapshot"]["version"] for d in root.standing().all.get(snapshot.name, [])],
        "rows": found,
    }


def row(root: Root, target: str, near: str = "") -> dict[str, Any]:
    """One row of any dataset, with every plain column."""
    done, key = find(root, target, near)
    if key is None:
        raise UserError(f"{target[:40]!r} is a dataset: give a row's key")
    snapshot = snapshot_of(done)
    kinds = root.columns(snapshot)
    found = root.page(snapshot, list(kinds), f"key = X'{key.hex()}'", 1)[0]
    return {
        "key": key.hex(),
        "dataset": snapshot.name,
        "version": snapshot.version,
        "stands": root.standing().dones.get(snapshot.name, {}).get("key") == done["key"],
        "columns": {n: plain(v) for n, v in found.items()},
        "media": [n for n in root.blobs(snapshot) if n == "media"],
    }


def plain(value: Any) -> Any:
    """A value as a page shows it: keys in hex digits, what is long cut or counted."""
    if isinstance(value, bytes):
        return value.hex() if len(value) == 16 else f"{len(value):,} bytes"
    if isinstance(value, str) and len(value) > CUT_TEXT:
        return f"{value[:CUT_TEXT]} ... ({len(value):,} characters)"
    if isinstance(value, list | tuple):
        if len(value) > 40:
            return f"{len(value):,} values"
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value
