"""Row stages: shards through the actors, their fragments verified and committed, every unit accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra.faults import crash_point
from infra.ledger import Folder
from infra.types import RunError, Snapshot
from pipelines import rest, shards
from pipelines.plan import StagePlan
from pipelines.publish import Made, Site, done_of, must, why_made
from pipelines.units import Base, compare
from pipelines.worker import ShardWorker
from stages.base import RowStage

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

BUDGET_FLOOR_UNITS = 20


def run_rows(site: Site, plan: StagePlan, folder: Folder) -> Made:
    """Finish the shards of a plan, verify and commit them, and count every unit before anything is published."""
    shard_plan = _open_plan(site, plan, folder)
    crash_point("planned", plan.name)
    computed = _run_shards(site, plan, folder, shard_plan)
    results = [must(folder.get(f"shard.{shard_plan.number}.{i}")) for i in range(len(shard_plan.shards))]
    staged = [f for r in results for f in r["fragments"]]
    if not all(site.store.intact(r["files"]) for r in results):
        _replan(site, folder, shard_plan, results)
        return run_rows(site, plan, folder)
    crash_point("staged", plan.name)
    base = _base(site, plan, shard_plan)
    wanted = pa.concat_arrays([u.keys for u in plan.units])
    version, carried = _commit(site, plan, shard_plan, staged, base, wanted)
    crash_point("committed", plan.name)
    snapshot = site.store.snapshot(plan.name, version)
    left = rest.join([rest.from_rows([e for r in results for e in r["rest"]]), carried, *(rest.from_select(u.gated_out) for u in plan.units)])  # fmt: skip  # noqa: E501
    units_in = len(wanted) + sum(u.gated_out.num_rows for u in plan.units)
    _conserve(site, plan.name, snapshot, units_in, left)
    return Made(done_of(site, plan, folder, snapshot, shard_plan.number, left, units_in), computed)


def _open_plan(site: Site, plan: StagePlan, folder: Folder) -> shards.ShardPlan:
    """The unfinished plan of this key, if it was made for the same reason by the same code; else a new one."""
    intent = {"why": why_made(plan), "code": plan.notes["code"]}
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
    stored = [must(folder.get(n)) for n in names if n.startswith(f"shard.{shard_plan.number}.")]
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
        site.run.left(plan.name, result["rest"])
        bad.extend(_bad(result))
        site.show(plan.name, computed, total, "")
        _check_budget(plan, shard_plan, bad)

    if not todo:
        return 0
    site.show(plan.name, 0, total, "")
    sentences = site.pool(plan).map(f"{plan.key}.{shard_plan.number}", worker, todo, on_shard, on_log=lambda said: site.run.heard(plan.name, said), check=site.run.check)  # fmt: skip  # noqa: E501
    if sentences:
        raise RunError(f"{plan.name} left {len(sentences)} of {len(todo)} shards undone ({sentences[0]}); finished shards are kept: {site.resume}")  # fmt: skip  # noqa: E501
    return computed


def _bad(result: Mapping[str, Any]) -> list[str]:
    """Reasons of a shard's quarantined units."""
    return [entry["reason"] for entry in result["rest"] if entry["state"] == "quarantined"]


def _check_budget(plan: StagePlan, shard_plan: shards.ShardPlan, bad: Sequence[str]) -> None:
    """Stop where too many units are at fault: then the stage is, or the world."""
    budget, total = plan.node.placement.error_budget, len(shard_plan.keys)
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
