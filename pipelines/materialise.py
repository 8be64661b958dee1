"""From a plan to a `done`: claim, shards, actors, verify, commit, tag, done. Each arrow survives a kill.

The order of the writes is the protocol (ARCHITECTURE, section 4); what a crash leaves behind is found again by
name: shards by `shard.N.i`, our own commit by its stamp, a published truth by `done.N`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra.actors import Pool
from infra.bucket import Bucket
from infra.checkpoints import CheckpointFolder
from infra.faults import crash_point
from infra.ledger import Claim, Folder
from infra.store import Store
from infra.types import RunError, Snapshot, now_utc
from pipelines import rest, shards
from pipelines.job import EngineJob
from pipelines.key import RowKeys
from pipelines.plan import Planner, StagePlan
from pipelines.tell import keep_for_telling
from pipelines.units import Base, compare
from pipelines.worker import ShardWorker
from stages.base import JobStage, Row, RowStage

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

JOB_ROWS_PER_FRAGMENT = 4096
BUDGET_FLOOR_UNITS = 20


@dataclass(frozen=True)
class Site:
    """Where a run works: everything but the plan."""

    planner: Planner
    root: Bucket
    source: Bucket | None
    run_id: str
    resume: str
    """The command that goes on after a failure."""
    pool: Callable[[StagePlan], Pool]
    release_pools: Callable[[], None]
    show: Callable[[str, int, int, str], None]
    """Progress: stage, done, total, what."""

    current: Mapping[str, Snapshot | None]
    """The snapshots that this run stands on so far."""

    @property
    def store(self) -> Store:
        """The datasets of the root."""
        return self.planner.store

    def where_raw_lies(self) -> Snapshot | None:
        """The newest listing: raw content is found there by digest, so a moved file costs nothing."""
        listed = next(node.name for node in self.planner.graph if not node.stage.inputs)
        return self.current[listed]


@dataclass(frozen=True)
class Made:
    """A materialisation after this run worked on it."""

    done: dict[str, Any]
    computed: int
    adopted: bool = False


def materialise(site: Site, plan: StagePlan) -> Made:
    """Bring one planned stage to its `done`, alone or after whoever holds the claim."""
    assert plan.key is not None
    folder = site.planner.ledger.folder(plan.name, plan.key)
    folder.put("key.json", {"dataset": plan.name, "key": plan.key, "tree": plan.tree, "notes": plan.notes})
    last_done = folder.last("done")
    claim = Claim(folder, site.run_id)
    waiting = lambda holder: site.show(plan.name, 0, 0, f"waiting for {holder['host']}, process {holder['pid']}")  # noqa: E731
    if not claim.wait(on_wait=waiting, published=last_done):
        return Made(_must(folder.done()), 0, adopted=True)
    try:
        crash_point("claimed", plan.name)
        started = time.monotonic()
        stage = plan.node.stage
        made = _run_rows(site, plan, folder) if isinstance(stage, RowStage) else _run_job(site, plan, folder)
        seconds = round(time.monotonic() - started, 3)
        done = made.done | {"seconds": seconds, "kept": plan.keep or 0, "computed": made.computed, "at": now_utc()}
        return _publish_done(folder, done, made)
    finally:
        claim.release()


def _publish_done(folder: Folder, done: dict[str, Any], made: Made) -> Made:
    number = folder.last("done") + 1
    won = folder.put(f"done.{number}", done | {"number": number})
    crash_point("done", done["dataset"])
    if won:
        return Made(_must(folder.done()), made.computed)
    return Made(_must(folder.done()), made.computed, adopted=True)


def _must(done: dict[str, Any] | None) -> dict[str, Any]:
    assert done is not None
    return done


# --- row stages --------------------------------------------------------------------------------------------


def _run_rows(site: Site, plan: StagePlan, folder: Folder) -> Made:
    shard_plan = _open_plan(site, plan, folder)
    crash_point("planned", plan.name)
    computed = _run_shards(site, plan, folder, shard_plan)
    results = [_must(folder.get(f"shard.{shard_plan.number}.{i}")) for i in range(len(shard_plan.shards))]
    staged = [f for r in results for f in r["fragments"]]
    if not all(site.store.intact(r["files"]) for r in results):
        _replan(site, folder, shard_plan, results)
        return _run_rows(site, plan, folder)
    crash_point("staged", plan.name)
    base = _base(site, plan, shard_plan)
    wanted = pa.concat_arrays([u.keys for u in plan.units])
    version, carried = _commit(site, plan, shard_plan, staged, base, wanted)
    crash_point("committed", plan.name)
    snapshot = site.store.snapshot(plan.name, version)
    left = rest.join([rest.from_rows([e for r in results for e in r["rest"]]), carried, *(rest.from_select(u.gated_out) for u in plan.units)])  # fmt: skip  # noqa: E501
    units_in = len(wanted) + sum(u.gated_out.num_rows for u in plan.units)
    _conserve(site, plan.name, snapshot, units_in, left)
    return Made(_done(site, plan, folder, snapshot, shard_plan.number, left, units_in), computed)


def _open_plan(site: Site, plan: StagePlan, folder: Folder) -> shards.ShardPlan:
    """The unfinished plan of this key, if it was made for the same reason by the same code; else a new one."""
    intent = {"why": _why(plan), "code": plan.notes["code"]}
    number = folder.unfinished_plan()
    if number:
        found = shards.read(folder, number)
        if found.intent == intent:
            return found
    number = folder.last("plan") + 1
    data = shards.make(plan, intent, site.store.head(plan.name), plan.node.placement.shard_rows)
    folder.put_bytes(f"plan.{number}", data)
    return shards.read(folder, number)


def _replan(site: Site, folder: Folder, old: shards.ShardPlan, results: Sequence[Mapping[str, Any]]) -> None:
    """Files of finished shards have vanished: the same shards under the next number, keeping the intact ones."""
    number = old.number + 1
    for i, result in enumerate(results):
        if site.store.intact(result["files"]):
            folder.put(f"shard.{number}.{i}", result)
    folder.put_bytes(f"plan.{number}", folder.get_bytes(f"plan.{old.number}"))


def _run_shards(site: Site, plan: StagePlan, folder: Folder, shard_plan: shards.ShardPlan) -> int:
    names = folder.names()
    todo = [(i, units) for i, units in enumerate(shard_plan.shards) if f"shard.{shard_plan.number}.{i}" not in names]
    stage, placement = plan.node.stage, plan.node.placement
    assert isinstance(stage, RowStage)
    edges = tuple(shard_plan.inputs[e.dataset] for e in stage.inputs if e.role == "rows")
    sides = {e.dataset: shard_plan.inputs[e.dataset] for e in stage.inputs if e.role == "side"}
    files = site.where_raw_lies() if stage.reads_raw and stage.inputs else None
    worker = ShardWorker(stage, plan.recipe, site.root, site.source, edges, sides, files, placement.batch_rows, placement.deadline_s)  # fmt: skip  # noqa: E501
    stored = [_must(folder.get(n)) for n in names if n.startswith(f"shard.{shard_plan.number}.")]
    bad = [reason for result in stored for reason in _bad(result)]
    _check_budget(plan, shard_plan, bad)
    total = sum(len(u) for _, u in todo)
    computed = 0

    def on_shard(number: int, parts: list[dict[str, Any]]) -> None:
        nonlocal computed
        starts: dict[str, Any] = {"fragments": [], "rest": [], "rows": 0, "units": 0}
        result: dict[str, Any] = {n: sum((p[n] for p in parts), start) for n, start in starts.items()}
        result["files"] = {path: size for p in parts for path, size in p["files"].items()}
        folder.put(f"shard.{shard_plan.number}.{number}", result)
        crash_point("shard", plan.name)
        computed += result["units"]
        bad.extend(_bad(result))
        site.show(plan.name, computed, total, "")
        _check_budget(plan, shard_plan, bad)

    if not todo:
        return 0
    site.show(plan.name, 0, total, "")
    sentences = site.pool(plan).map(f"{plan.key}.{shard_plan.number}", worker, todo, on_shard)
    if sentences:
        raise RunError(f"{plan.name} left {len(sentences)} of {len(todo)} shards undone ({sentences[0]}); finished shards are kept: {site.resume}")  # fmt: skip  # noqa: E501
    return computed


def _bad(result: Mapping[str, Any]) -> list[str]:
    """Reasons of a shard's quarantined units."""
    return [entry["reason"] for entry in result["rest"] if entry["state"] == "quarantined"]


def _check_budget(plan: StagePlan, shard_plan: shards.ShardPlan, bad: Sequence[str]) -> None:
    """Stop where too many units are at fault: then the stage is, or the world."""
    budget, total = plan.node.placement.error_budget, sum(len(units) for units in shard_plan.shards)
    if len(bad) > max(BUDGET_FLOOR_UNITS, budget * total):
        raise RunError(
            f"{plan.name} quarantined {len(bad)} of {total} units, over its error budget ({budget:.0%}; the last one:"
            f" {bad[-1]}): fix the cause and run again with --force, or raise cluster.error_budget"
        )


def _base(site: Site, plan: StagePlan, shard_plan: shards.ShardPlan) -> Base | None:
    """The base that the plan file names, which a resumed run must use even if a newer one exists by now."""
    if shard_plan.base is None:
        return None
    if plan.base and plan.base.snapshot.version == shard_plan.base_version:
        return plan.base
    done = next(d for d in site.planner.ledger.history(plan.name, shard_plan.base) if d["snapshot"]["version"] == shard_plan.base_version)  # fmt: skip  # noqa: E501
    return site.planner.base(done)


def _commit(
    site: Site, plan: StagePlan, shard_plan: shards.ShardPlan, staged: list[str], base: Base | None, wanted: pa.Array
) -> tuple[int, pa.Table]:
    """Publish the version; also the part of the base's rest that still counts."""
    stamp = f"{plan.key}.{shard_plan.number}"
    own = plan.node.stage.schema
    if base is None:
        return site.store.publish_full(plan.name, own, staged, stamp, shard_plan.head), rest.EMPTY
    difference = compare(wanted, base)
    tried_again = pc.is_in(difference.kept_rest["unit"], value_set=shard_plan.keys)
    carried = difference.kept_rest.filter(pc.invert(tried_again))
    if not staged and not len(difference.drop):
        return base.snapshot.version, carried
    dropped = site.store.addresses(base.snapshot, difference.drop)
    return site.store.publish_incremental(base.snapshot, dropped, staged, stamp), carried


def _conserve(site: Site, name: str, snapshot: Snapshot, units_in: int, left: pa.Table) -> None:
    """Units in = units with rows + empty + filtered + quarantined."""
    parents = site.store.scan(snapshot, ["parents"])["parents"]
    with_rows = len(pc.unique(pc.list_element(parents, 0))) if len(parents) else 0
    if with_rows + left.num_rows != units_in or len(left["unit"].unique()) != left.num_rows:
        raise RunError(f"{name} lost count: {units_in} units in, {with_rows} with rows and {left.num_rows} without; nothing was published, report this with `plait why {name}`")  # fmt: skip  # noqa: E501


def _done(
    site: Site, plan: StagePlan, folder: Folder, snapshot: Snapshot, number: int, left: pa.Table, units_in: int
) -> dict[str, Any]:
    site.store.tag(snapshot, f"m.{plan.key}.{number}")
    crash_point("tagged", plan.name)
    rest_name = put_rest(folder, number, left)
    crash_point("rest", plan.name)
    return {
        "dataset": plan.name,
        "key": plan.key,
        "recipe": plan.recipe,
        "plan": number,
        "why": _why(plan),
        "snapshot": snapshot.to_json(),
        "inputs": _inputs(plan),
        "rest": rest_name,
        "reasons": rest.by_reason(left),
        "gated_out": [rest.digest(u.gated_out) for u in plan.units],
        "rows_in": units_in,
        "rows_out": snapshot.rows,
        **rest.counts(left),
        "run_id": site.run_id,
        "pipeline": site.planner.graph.name,
        "state": "done",
        "metrics": {},
    }


def put_rest(folder: Folder, number: int, left: pa.Table) -> str:
    """Put the rest under a name of its own: a try that died may have left another one, of other clauses."""
    data = rest.to_bytes(left)
    name = f"rest.{number}.{hashlib.blake2b(data, digest_size=4).hexdigest()}"
    folder.put_bytes(name, data)
    return name


def _why(plan: StagePlan) -> str:
    """made, force or retry_quarantined."""
    leaf = plan.cause[0]["leaf"] if plan.cause else ""
    return leaf if leaf in ("force", "retry_quarantined") else "made"


def _inputs(plan: StagePlan) -> dict[str, Any]:
    """Every input with its pinned snapshot and what it gave to the key."""
    found: dict[str, Any] = {}
    for name, snapshot in plan.snapshots.items():
        units = next((u for u in plan.units if u.dataset == name), None)
        digest = units.digest if units is not None else snapshot.digest
        count = len(units.keys) if units is not None else snapshot.rows
        edge = next((e for e in plan.node.stage.inputs if e.dataset == name), None)
        role = edge.role if edge else "select"
        unit = edge.unit if edge else "key"
        found[name] = {"snapshot": snapshot.to_json(), "digest": digest, "units": count, "role": role, "unit": unit}
    return found


def reselect(planner: Planner, plan: StagePlan) -> dict[str, Any]:
    """A fresh stage whose select leaves out other units than its `done` says, though the same ones pass.

    The snapshot stays; the next `done` has the rest as it is now, so that the funnel and `why --row` are true.
    """
    done = _must(plan.done)
    if not plan.units or done["gated_out"] == [rest.digest(u.gated_out) for u in plan.units]:
        return done
    folder = planner.ledger.folder(plan.name, done["key"])
    old = planner.rest(done)
    left = rest.join([old.filter(pc.equal(old["by"], "stage")), *(rest.from_select(u.gated_out) for u in plan.units)])
    number = folder.last("done") + 1
    new = {
        "number": number,
        "rest": put_rest(folder, number, left),
        "reasons": rest.by_reason(left),
        "gated_out": [rest.digest(u.gated_out) for u in plan.units],
        "rows_in": sum(len(u.keys) + u.gated_out.num_rows for u in plan.units),
        **rest.counts(left),
        "why": "reselected",
        "at": now_utc(),
    }
    told = folder.get(f"told.{done['number']}")
    if told:  # the materialisation is the same, so MLflow keeps its one run
        folder.put(f"told.{number}", told)
    folder.put(f"done.{number}", done | new)
    return _must(folder.done())


# --- job stages --------------------------------------------------------------------------------------------


def _run_job(site: Site, plan: StagePlan, folder: Folder) -> Made:
    number = folder.last("done") + 1
    edges = {u.dataset: u for u in plan.units}
    sides = [e.dataset for e in plan.node.stage.inputs if e.role == "side"]
    empty = not any(len(u.keys) for u in plan.units) or any(plan.snapshots[s].rows == 0 for s in sides)
    checkpoints = CheckpointFolder(site.root, f"checkpoints/{plan.name}/{plan.key}.{number}")
    scratch = Path(tempfile.mkdtemp(prefix=f"plait-{plan.name}-"))
    show = lambda done, total, what: site.show(plan.name, done, total, what)  # noqa: E731
    job = EngineJob(site.root, scratch, plan.node.placement.workers, checkpoints, plan.snapshots, edges, show)
    try:
        stage = plan.node.stage
        assert isinstance(stage, JobStage)
        head = site.store.head(plan.name)
        site.release_pools()
        staged = [] if empty else _stage_job(site, plan, stage.run(job))
        version = site.store.publish_full(plan.name, stage.schema, staged, f"{plan.key}.{number}", head)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    snapshot = site.store.snapshot(plan.name, version)
    left = rest.join([rest.from_rows(job.rejected), *(rest.from_select(u.gated_out) for u in plan.units)])
    units_in = sum(len(u.keys) + u.gated_out.num_rows for u in plan.units)
    done = _done(site, plan, folder, snapshot, number, left, units_in)
    done |= {"state": "empty" if empty else "done", "metrics": job.final}
    keep_for_telling(folder, number, job.metrics, job.pictures)
    return Made(done, 0 if empty else 1)


def _stage_job(site: Site, plan: StagePlan, rows: Iterator[Row]) -> list[str]:
    keys = RowKeys(plan.node.stage, plan.recipe)
    own = plan.node.stage.schema
    staged: list[str] = []
    batch: list[Row] = []
    for row in rows:
        parents = list(row["parents"])
        batch.append({"label": plan.name, **row, "key": keys.next(parents, row), "parents": parents})
        if len(batch) >= JOB_ROWS_PER_FRAGMENT:
            staged += site.store.stage(plan.name, batch, own).fragments
            batch = []
    return staged + list(site.store.stage(plan.name, batch, own).fragments)
