"""Packs as strips: what stands where, to scale, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboards.explorer.clips import in_order
from dashboards.explorer.root import MAX_PAGE, Root, key_literals, key_of
from infra.ledger import snapshot_of
from infra.types import Snapshot, UserError
from models.layout import KINDS

COLUMNS = (
    "key", "label", "segments", "num_tokens", "num_places", "num_text_tokens", "num_vision_tokens", "num_pictures",
    "loss_weight", "flops", "order", "phase",
)  # fmt: skip
SORTS = ("order", "flops", "num_tokens", "num_text_tokens", "num_vision_tokens", "num_pictures", "loss_weight")
MAX_PIECES = 1500
"""Pieces of a strip in a list; a longer pack is shown whole when it is opened."""
MEMBERS = 400


def page(root: Root, sort: str, descending: bool, offset: int, limit: int) -> dict[str, Any]:
    """Packs in an order, with their strips."""
    snapshot = _packs(root)
    if sort not in SORTS or sort not in root.columns(snapshot):
        raise UserError(f"{sort!r} is no order of packs: {', '.join(SORTS)}")
    if not 0 < limit <= MAX_PAGE or offset < 0:
        raise UserError(f"a page has 1 to {MAX_PAGE} packs and begins at 0 or later")
    name = ("order", snapshot, sort, descending)
    order = root.cache.get(name, lambda: in_order(root.numbers(snapshot, sort), descending), lambda a: a.nbytes)
    places = order[offset : offset + limit]
    rows = [_shown(row, MAX_PIECES) for row in root.at(snapshot, places.tolist(), COLUMNS)]
    flops = root.numbers(snapshot, "flops")
    tokens = root.numbers(snapshot, "num_tokens")
    return {
        "total": snapshot.rows,
        "offset": offset,
        "dataset": f"packs@{snapshot.version}",
        "longest": int(tokens.max()) if len(tokens) else 0,
        "flops": {"mean": float(flops.mean()), "max": float(flops.max())} if len(flops) else None,
        "kinds": [k for k in KINDS],
        "sorts": [s for s in SORTS if s in root.columns(snapshot)],
        "rows": rows,
    }


def one(root: Root, key: str) -> dict[str, Any]:
    """One pack: every piece, and the rows that it was made of."""
    snapshot = _packs(root)
    name = key_of(key)
    rows = root.page(snapshot, (*COLUMNS, "parents"), f"key = X'{name.hex()}'", 1)
    if not rows:
        raise UserError(f"{key} is the key of no pack of packs@{snapshot.version}")
    parents: list[bytes] = rows[0].pop("parents")
    return {**_shown(rows[0], None), "members": _members(root, parents[:MEMBERS]), "num_members": len(parents)}


def _packs(root: Root) -> Snapshot:
    found = root.snapshot("packs")
    if found is None:
        raise UserError(f"there are no packs under {root.bucket.uri} yet: `plait run --to packs` makes them")
    return found


def _shown(row: dict[str, Any], most: int | None) -> dict[str, Any]:
    segments: list[dict[str, Any]] = row.pop("segments")
    pieces = joined(segments)
    cut = pieces if most is None else pieces[:most]
    documents = len({s["document"] for s in segments})
    return {**row, "key": row["key"].hex(), "pieces": cut, "num_pieces": len(pieces), "num_documents": documents}


def joined(segments: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """[length, kind, document, note] of neighbours of one kind and document that are no pictures, put together."""
    found: list[list[Any]] = []
    for segment in segments:
        kind = segment["kind"] if isinstance(segment["kind"], str) else KINDS[segment["kind"]]
        note = f"{segment['rows']} x {segment['columns']}" if segment.get("rows") else ""
        note += f", scale {segment['scale'] + 1} of {segment['num_scales']}" if segment.get("num_scales") else ""
        last = found[-1] if found else None
        if last and last[1:] == [kind, segment["document"], note] and kind in ("text", "marks"):
            last[0] += segment["len"]
        else:
            found.append([segment["len"], kind, segment["document"], note])
    return found


def _members(root: Root, parents: Sequence[bytes]) -> list[dict[str, Any]]:
    """Rows of the packs' inputs that a pack names, with their texts where they have one."""
    standing = root.standing()
    found: list[dict[str, Any]] = []
    for given in standing.done("packs")["inputs"].values():
        before = standing.of_input(given)
        if before is None or given["role"] != "rows" or not parents:
            continue
        snapshot = snapshot_of(before)
        where = f"{given['unit']} in ({key_literals(parents)})"
        for row in root.page(snapshot, ["key", "label", "text"], where, MEMBERS):
            found.append({**row, "key": row["key"].hex(), "dataset": snapshot.name})
    return found
