"""What differs between two runs, two versions of a dataset, or two checkpoints: settings, code, rows, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra.ledger import snapshot_of
from infra.types import UserError
from pipelines.plan import leaves
from pipelines.standing import Standing
from pipelines.target import Finder
from pipelines.units import first_parents, flat

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

Done = Mapping[str, Any]


def between(standing: Standing, a: str, b: str) -> list[dict[str, Any]]:
    """One entry per stage that differs: name, leaves, rows, metrics."""
    sides = [_stages(standing, target) for target in (a, b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    entries = [_entry(standing, name, sides[0].get(name), sides[1].get(name)) for name in names]
    return [e for e in entries if e["leaves"] or e["metrics"] or e["rows"]["only_a"] or e["rows"]["only_b"]]


def _stages(standing: Standing, target: str) -> dict[str, Done]:
    """The materialisations of a run, or the one behind a dataset or checkpoint."""
    runs = [run for run in standing.ledger.runs() if run.startswith(target)] if target[:1].isdigit() else []
    if len(runs) > 1:
        raise UserError(f"{target!r} begins several runs ({', '.join(runs[-3:])}): give more of it")
    if not runs:
        done = Finder(standing).find(target).done
        return {done["dataset"]: done}
    found: dict[str, Done] = {}
    for stage in standing.ledger.run(runs[0])["stages"]:
        if stage["snapshot"]:
            found[stage["name"]] = standing.at(stage["name"], stage["snapshot"]["version"])
    return found


def _entry(standing: Standing, name: str, a: Done | None, b: Done | None) -> dict[str, Any]:
    was, now = (_leaves(standing, done) for done in (a, b))
    moved = [leaf for leaf in sorted({*was, *now}) if was.get(leaf) != now.get(leaf)]
    metrics = [(done or {}).get("metrics", {}) for done in (a, b)]
    changed = [m for m in {**metrics[0], **metrics[1]} if metrics[0].get(m) != metrics[1].get(m)]
    return {
        "name": name,
        "leaves": [{"leaf": leaf, "was": was.get(leaf), "now": now.get(leaf)} for leaf in moved],
        "rows": _rows(standing, a, b),
        "metrics": {m: [metrics[0].get(m), metrics[1].get(m)] for m in changed},
    }


def _leaves(standing: Standing, done: Done | None) -> dict[str, Any]:
    if done is None:
        return {}
    key = standing.ledger.folder(done["dataset"], done["key"]).get("key.json") or {"tree": None, "notes": {}}
    return leaves(key["tree"], key["notes"]) | {"code": key["notes"].get("code")}


def _rows(standing: Standing, a: Done | None, b: Done | None) -> dict[str, int]:
    """Rows by key; `changed` counts units that have rows on both sides, and other ones."""
    tables = [standing.store.scan(snapshot_of(done), ["key", "parents"]) if done else None for done in (a, b)]
    keys = [flat(t["key"]) if t is not None else pa.array([], pa.binary(16)) for t in tables]
    new = [pc.invert(pc.is_in(keys[i], value_set=keys[1 - i])) for i in (0, 1)]
    units = [first_parents(t.filter(new[i])["parents"]) if t is not None else keys[i] for i, t in enumerate(tables)]
    changed = pc.is_in(units[0].unique(), value_set=units[1]) if len(units[0]) and len(units[1]) else pa.array([False])
    only = [int(pc.sum(mask).as_py() or 0) for mask in new]
    both = len(keys[0]) - only[0]
    return {"both": both, "only_a": only[0], "only_b": only[1], "changed": int(pc.sum(changed).as_py() or 0)}
