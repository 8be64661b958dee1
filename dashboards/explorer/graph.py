"""The graph with what became of every row and what is going on: from the ledger alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from dashboards.explorer.root import Root
from infra.ledger import Folder
from infra.runs import Runs
from infra.types import UserError
from pipelines.live import curve_name
from pipelines.report import COUNTS
from pipelines.standing import Standing

LOG_LINES = 400
SHOWN_REASONS = 12


def state(root: Root) -> dict[str, Any]:
    """Every stage with its state, and the runs that are going on."""
    standing = root.standing()
    runs = Runs(root.bucket)
    going = runs.going()
    last = standing.last_run or {}
    nodes = _nodes(root, standing)
    at_work = {name: work for name in nodes if going and (work := _at_work(root, standing, name)) is not None}
    entries = {s["name"]: s for s in last.get("stages", [])}
    stages = [_stage(standing, node, entries, at_work) for node in nodes.values()]
    if going:
        _mark_waiting(stages)
    return {
        "root": root.bucket.uri,
        "sentence": None if nodes else f"Nothing has been made under {root.bucket.uri} yet: `plait run` makes it.",
        "last": {k: last.get(k) for k in ("run_id", "at", "ok", "error", "pipeline", "command")} if last else None,
        "going": going,
        "stages": stages,
    }


def _nodes(root: Root, standing: Standing) -> dict[str, dict[str, Any]]:
    """Node by name: what stands, and stages of the configured pipeline that were never made."""
    found: dict[str, dict[str, Any]] = {}
    for name in standing.order():
        done = standing.dones[name]
        inputs = [{"name": given["snapshot"]["name"], "role": given["role"]} for given in done["inputs"].values()]
        found[name] = {"name": name, "done": done, "inputs": inputs}
    if not found or any(name in found for name in root.edges):
        for name, sources in root.edges.items():
            inputs = [{"name": source, "role": "rows"} for source in sources]
            found.setdefault(name, {"name": name, "done": None, "inputs": inputs})
    for node in found.values():
        node["inputs"] = [given for given in node["inputs"] if given["name"] in found]
    return found


def _stage(
    standing: Standing, node: Mapping[str, Any], entries: Mapping[str, Any], at_work: Mapping[str, Any]
) -> dict[str, Any]:
    done, name = node["done"], node["name"]
    used = entries.get(name, {})
    shown: dict[str, Any] = {"name": name, "inputs": node["inputs"], "state": "not made"}
    if done:
        shown |= {n: done[n] for n in (*COUNTS, "computed", "kept", "seconds", "at", "run_id", "why", "key")}
        shown |= {"version": done["snapshot"]["version"], "rows": done["snapshot"]["rows"]}
        shown["reasons"] = dict(sorted(done["reasons"].items(), key=lambda item: -item[1])[:SHOWN_REASONS])
        shown["metrics"] = done["metrics"]
        shown["state"] = "fresh" if used.get("state") in ("fresh", "skipped") else "made"
        shown["state"] = "empty" if done["state"] == "empty" else shown["state"]
    if used.get("state") == "failed":
        shown |= {"state": "failed", "error": used.get("error")}
    if name in at_work:
        shown |= {"state": "running", "progress": at_work[name]}
    return shown


def _mark_waiting(stages: Sequence[dict[str, Any]]) -> None:
    """While a run goes on: what comes after a stage at work, or has never been made, waits."""
    busy = {s["name"] for s in stages if s["state"] == "running"}
    for stage in stages:  # inputs stand before their readers
        if stage["state"] != "running" and (
            stage["state"] == "not made" or any(i["name"] in busy for i in stage["inputs"])
        ):
            busy.add(stage["name"])
            stage["state"] = "waiting"


def _at_work(root: Root, standing: Standing, name: str) -> dict[str, Any] | None:
    """How far a stage is that a living driver holds, or None."""
    prefix = f"ledger/{name}"
    folders: dict[str, set[str]] = {}
    for path in root.bucket.names(prefix):
        key, _, leaf = path[len(prefix) + 1 :].partition("/")
        folders.setdefault(key, set()).add(leaf)
    for key, names in folders.items():
        folder = standing.ledger.folder(name, key)
        number = folder.last("claim", names)
        claim = root.document(name, key, f"claim.{number}") if number else None
        if claim and not claim.get("released") and folder.holder():
            return _progress(root, folder, names) | {"key": key, "since": claim["at"], "host": claim["host"]}
    return None


def _progress(root: Root, folder: Folder, names: set[str]) -> dict[str, Any]:
    """Shards of the plan, or steps of the curve: done, total, unit."""
    number = folder.last("plan", names)
    if number and f"done.{number}" not in names:
        units, shards = root.cache.get((folder.path, number), lambda: _planned(folder, number), lambda _: 100)
        done = sum(n.startswith(f"shard.{number}.") for n in names)
        return {"unit": "shards", "done": done, "total": shards, "units": units}
    curve = curve_name(folder.last("done", names) + 1)
    settings = ((folder.get("key.json") or {}).get("tree") or {}).get("recipe", {}).get("settings", {})
    data = root.bucket.get(f"{folder.path}/{curve}")
    steps = json.loads(data) if data else []
    total = settings.get("steps") or sum(v for v in (settings.get("phases") or {}).values() if isinstance(v, int))
    return {"unit": "steps", "done": steps[-1][0] if steps else 0, "total": total or None}


def _planned(folder: Folder, number: int) -> tuple[int, int]:
    """Units and shards of a plan, from the foot of its Parquet."""
    about: Any = pq.ParquetFile(io.BytesIO(folder.get_bytes(f"plan.{number}"))).metadata
    if not about.num_rows:
        return 0, 0
    column = next(i for i in range(about.num_columns) if about.row_group(0).column(i).path_in_schema == "shard")
    last = max(about.row_group(g).column(column).statistics.max for g in range(about.num_row_groups))
    return about.num_rows, int(last) + 1


# --- runs ------------------------------------------------------------------------------------------------------


def runs(root: Root, offset: int, limit: int) -> dict[str, Any]:
    """Runs, the last one first."""
    found = Runs(root.bucket)
    going = {one["run_id"]: one for one in found.going()}
    ids = found.ids[::-1]
    shown = [_run_line(root, run_id, going) for run_id in ids[offset : offset + limit]]
    return {"total": len(ids), "offset": offset, "rows": shown}


def _run_line(root: Root, run_id: str, going: Mapping[str, Any]) -> dict[str, Any]:
    ledger = root.standing().ledger
    data = root.bucket.get(f"ledger/runs/{run_id}.json")
    if data is None:
        started = json.loads(root.bucket.get(f"ledger/runs/{run_id}/started") or b"{}")
        state_of = "running" if run_id in going else "killed"
        return {"run_id": run_id, "state": state_of, "at": started.get("at"), "command": started.get("command", [])}
    record = ledger.run(run_id)
    stages = [{k: s.get(k) for k in ("name", "state", "computed", "seconds", *COUNTS)} for s in record["stages"]]
    return {
        "run_id": run_id,
        "state": "ok" if record.get("ok") else "failed",
        "at": record.get("at"),
        "command": record.get("command", []),
        "pipeline": record.get("pipeline"),
        "error": record.get("error"),
        "stages": stages,
    }


def run(root: Root, run_id: str) -> dict[str, Any]:
    """One run with the last lines of its log."""
    found = Runs(root.bucket)
    if run_id not in found.ids:
        raise UserError(
            f"{run_id!r} is no run of {root.bucket.uri}: the last ones are {', '.join(found.ids[-4:]) or 'none'}"
        )
    lines, _ = found.log(run_id)
    going = {one["run_id"]: one for one in found.going()}
    return _run_line(root, run_id, going) | {"lines": lines[-LOG_LINES:], "num_lines": len(lines)}
