"""Units that could not be processed, by fault, with the command that tries them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from dashboards.explorer.root import MAX_PAGE, Root
from infra.types import UserError, without_secrets

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

PLACES = ("root=", "storage=", "storage.")
"""Overrides that say where the root is: the explorer's own ones hold, for roots can move."""
FAULT = ("error_class", "trace_digest")


def faults(root: Root) -> dict[str, Any]:
    """One line per stage and fault, most units first."""
    standing = root.standing()
    found: list[dict[str, Any]] = []
    for name in standing.order():
        done = standing.dones[name]
        if done["quarantined"]:
            found += [{"stage": name, "command": retry(root, done), **group} for group in _groups(root, done)]
    return {"faults": sorted(found, key=lambda f: -f["units"]), "total": sum(f["units"] for f in found)}


def _quarantined(root: Root, done: Mapping[str, Any]) -> pa.Table:
    left = root.rest(done)
    return left.filter(pc.equal(left["state"], "quarantined"))


def _groups(root: Root, done: Mapping[str, Any]) -> list[dict[str, Any]]:
    table = _quarantined(root, done)
    groups = table.group_by(list(FAULT), use_threads=False).aggregate(
        [("unit", "count"), ("unit", "first"), ("label", "first"), ("reason", "first")]
    )
    return [
        {
            **{n: g[n] for n in FAULT},
            "units": g["unit_count"],
            "unit": g["unit_first"].hex(),
            "label": g["label_first"],
            "reason": g["reason_first"],
        }
        for g in groups.to_pylist()
    ]


def units(root: Root, stage: str, error_class: str, trace: str, offset: int, limit: int) -> dict[str, Any]:
    """Units of one fault, paged."""
    if not 0 < limit <= MAX_PAGE:
        raise UserError(f"a page has 1 to {MAX_PAGE} units")
    done = root.standing().done(stage)
    table = _quarantined(root, done)
    for name, value in zip(FAULT, (error_class, trace), strict=True):
        wanted = pc.equal(table[name], value) if value else pc.is_null(table[name])
        table = table.filter(pc.fill_null(wanted, False))
    rows = table.slice(offset, limit).select(["unit", "label", "reason", "attempt"]).to_pylist()
    return {"total": table.num_rows, "offset": offset, "rows": [{**r, "unit": r["unit"].hex()} for r in rows]}


def error(root: Root, stage: str, unit: bytes) -> dict[str, Any]:
    """The whole text of one unit's error."""
    standing = root.standing()
    left = standing.rest(standing.done(stage))
    found = left.filter(pc.equal(left["unit"], pa.scalar(unit, pa.binary(16)))).to_pylist()
    if not found:
        raise UserError(f"{unit.hex()} gave rows at {stage}, or is none of its units")
    return {**found[0], "unit": unit.hex(), "stage": stage}


def retry(root: Root, done: Mapping[str, Any]) -> str:
    """The command that tries a stage's quarantine again: settings as its last run had them, the root as it is here."""
    asked = ["plait", "run", "--only", done["dataset"], "--retry-quarantined"]
    asked += [text for text in root.overrides if text.startswith(PLACES)] or [f"root={root.bucket.uri}"]
    try:
        record = root.standing().ledger.run(done["run_id"])
    except FileNotFoundError:  # the run was killed before it could put its record
        record = {}
    own = [text for text in root.overrides if not text.startswith(PLACES)]
    settings = [t for t in record.get("command", []) if "=" in t and not t.startswith(("-", *PLACES))] or own
    return without_secrets(shlex.join([*asked, *settings]))
