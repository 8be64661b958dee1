"""Row stages: shards through the actors, their fragments verified and committed, every unit accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute

from infra import commits
from infra.allot import Size
from infra.digests import difference_of_digests, digest_of, num_distinct, sum_of_digests
from infra.faults import crash_point
from infra.lane import Share, Todo
from infra.ledger import Folder
from infra.store import IO_THREADS
from infra.telemetry import Meter
from infra.types import RunError, Snapshot
from pipelines import rest, shards
from pipelines.merge import merged
from pipelines.plan import StagePlan
from pipelines.publish import Made, Site, done_of, must, why_made
from pipelines.units import Base, compare, flat
from pipelines.worker import ShardWorker, put_shard
from stages.base import RowStage

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

BUDGET_FLOOR_UNITS = 20


def run_rows(site: Site, plan: StagePlan, folder: Folder) -> Made:
    """Finish the shards of a plan, verify and commit them, and count every unit before anything is published."""
    shard_plan = _open_plan(site, plan, folder)
    crash_point("planned", plan.name)
    results, computed = _run_shards(site, plan, folder, shard_plan)
    missing = site.store.missing(plan.name, {path: size for r in results for path, size in r["files"].items()})
    if missing:
        _replan(folder, shard_plan, results, missing)
        return run_rows(site, plan, folder)
    crash_point("staged", plan.name)
    base = _base(site, plan, shard_plan)
    wanted = pa.concat_arrays([u.keys for u in plan.units])
    snapshot, carried = _commit(site, plan, shard_plan, results, base, wanted)
    crash_point("committed", plan.name)
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
    if plan.compute:  # a resumed run may have nothing left to compute, and then it starts no actor
        site.fleet().warm(_share(site, plan), -(-plan.compute // shards.MIN_ROWS), ShardWorker)
    number = folder.last("plan") + 1
    default = shards.default_rows(plan.node.stage, site.planner.graph, plan.compute or 0)
    data = shards.make(plan, site.store, intent, site.store.head(plan.name), plan.node.placement.shard_rows or default)
    folder.put_bytes(f"plan.{number}", data)
    return shards.read(folder, number)


def _replan(folder: Folder, old: shards.ShardPlan, results: Sequence[Mapping[str, Any]], missing: set[str]) -> None:
    """Files of finished shards have vanished: the same shards under the next number, keeping the intact ones."""
    number = old.number + 1
    for i, result in enumerate(results):
        if not missing & result["files"].keys():
            folder.put(f"shard.{number}.{i}", result)
    folder.put_bytes(f"plan.{number}", folder.get_bytes(f"plan.{old.number}"))


def _run_shards(
    site: Site, plan: StagePlan, folder: Folder, shard_plan: shards.ShardPlan
) -> tuple[list[dict[str, Any]], int]:
    """The results of all shards, those of earlier runs included, and how many units were computed now."""
    number, prefix = shard_plan.number, f"shard.{shard_plan.number}."
    stored = sorted(int(n.removeprefix(prefix)) for n in folder.names() if n.startswith(prefix))
    with ThreadPoolExecutor(IO_THREADS) as threads:
        found = threads.map(lambda i: must(folder.get(f"{prefix}{i}")), stored)
        results = dict(zip(stored, found, strict=True))
    budget = _Budget(plan, shard_plan)
    for result in results.values():
        budget.add(result)
    todo = [i for i in range(len(shard_plan)) if i not in results]
    total, computed = sum(map(shard_plan.size, todo)), 0
    meter = Meter(plan.name, site.run_id, total)

    def on_shard(shard: int, parts: list[dict[str, Any]]) -> None:
        nonlocal computed
        # a whole shard was put by its actor; one that fell apart is put here, where its parts meet
        result = parts[0] if len(parts) == 1 else put_shard(folder, number, shard, _joined(parts))
        crash_point("shard", plan.name)
        results[shard] = result
        computed += result["units"]
        meter.ended(result)
        site.run.left(plan.name, result["rest"])
        site.show(plan.name, computed, total, "")
        budget.add(result)

    if todo:
        site.show(plan.name, 0, total, "")
        watch = site.watch(plan.name, on_shard, lambda what: site.show(plan.name, computed, total, what), meter)
        worker = _worker(site, plan, folder, shard_plan)
        sentences = site.fleet().map(worker, Todo(todo, shard_plan.units), _share(site, plan), watch)
        if sentences:
            raise RunError(f"{plan.name} left {len(sentences)} of {len(todo)} shards undone ({sentences[0]}); finished shards are kept: {site.resume}")  # fmt: skip  # noqa: E501
    return [results[i] for i in sorted(results)], computed


def _share(site: Site, plan: StagePlan) -> Share:
    """The actors that a stage may have."""
    place = plan.node.placement
    size = Size(place.cpus, place.gpus, tuple(sorted(place.resources.items())))
    return Share(size, place.min_workers, place.workers, site.planner.graph.names.index(plan.name))


def _worker(site: Site, plan: StagePlan, folder: Folder, shard_plan: shards.ShardPlan) -> ShardWorker:
    stage, placement = plan.node.stage, plan.node.placement
    assert isinstance(stage, RowStage)
    edges = tuple(shard_plan.inputs[e.dataset] for e in shards.row_edges(stage))
    parents = {e.parent[0]: shard_plan.inputs[e.parent[0]] for e in shards.row_edges(stage) if e.parent}
    sides = {e.dataset: shard_plan.inputs[e.dataset] for e in stage.inputs if e.role == "side"}
    files = site.where_raw_lies() if stage.reads_raw and stage.inputs else None
    return ShardWorker(stage, plan.recipe, site.root, site.source, edges, parents, sides, files, placement.batch_rows, placement.deadline_s, folder, shard_plan.number)  # fmt: skip  # noqa: E501


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of the parts that a shard fell into."""
    starts: dict[str, Any] = {"fragments": [], "rest": [], "rows": 0, "units": 0}
    result: dict[str, Any] = {n: sum((p[n] for p in parts), start) for n, start in starts.items()}
    result["files"] = {path: size for p in parts for path, size in p["files"].items()}
    result["digest"] = sum_of_digests(p["digest"] for p in parts)
    return result


class _Budget:
    """Stops a stage where too many units are at fault: then the stage is, or the world."""

    def __init__(self, plan: StagePlan, shard_plan: shards.ShardPlan) -> None:
        self.name, self.share, self.total = plan.name, plan.node.placement.error_budget, len(shard_plan.keys)
        self.num_bad = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Count the quarantined units of a shard."""
        bad = [entry["reason"] for entry in result["rest"] if entry["state"] == "quarantined"]
        self.num_bad += len(bad)
        if bad and self.num_bad > max(BUDGET_FLOOR_UNITS, self.share * self.total):
            raise RunError(
                f"{self.name} quarantined {self.num_bad} of {self.total} units, over its error budget"
                f" ({self.share:.0%}; the last one: {bad[-1]}): fix the cause and run again with --force,"
                " or raise cluster.error_budget"
            )


def _base(site: Site, plan: StagePlan, shard_plan: shards.ShardPlan) -> Base | None:
    """The base that the plan file names, which a resumed run must use even if a newer one exists by now."""
    if shard_plan.base is None:
        return None
    if plan.base and plan.base.snapshot.version == shard_plan.base_version:
        return plan.base
    history = site.planner.ledger.history(plan.name, shard_plan.base)
    done = next((d for d in history if d["snapshot"]["version"] == shard_plan.base_version), history[0])
    then = {**done["snapshot"], "version": shard_plan.base_version}  # compacted since: the same rows, and kept for us
    done = {**done, "snapshot": then}
    return site.planner.base(done)


def _commit(
    site: Site,
    plan: StagePlan,
    shard_plan: shards.ShardPlan,
    results: Sequence[Mapping[str, Any]],
    base: Base | None,
    wanted: pa.Array,
) -> tuple[Snapshot, pa.Table]:
    """Publish the version and read it back; also the part of the base's rest that still counts."""
    stamp, store, own = f"{plan.key}.{shard_plan.number}", site.store, plan.node.stage.schema
    staged = [f for r in results for f in r["fragments"]]
    digest = sum_of_digests(r["digest"] for r in results)
    if commits.find(store, plan.name, stamp, shard_plan.head) is None:
        staged = merged(site, plan, staged)
        crash_point("merged", plan.name)
    if base is None:
        version, carried = commits.publish_full(store, plan.name, own, staged, stamp, shard_plan.head), rest.EMPTY
    else:
        difference = compare(wanted, base)
        tried_again = pc.is_in(difference.kept_rest["unit"], value_set=shard_plan.keys)
        carried = difference.kept_rest.filter(pc.invert(tried_again))
        if not staged and not len(difference.drop):
            return base.snapshot, carried
        keys = flat(store.scan(base.snapshot, ["key"])["key"]).take(pa.array(difference.drop))
        digest = sum_of_digests([difference_of_digests(base.snapshot.digest, digest_of(keys)), digest])
        dropped = store.addresses(base.snapshot, difference.drop)
        version = commits.publish_incremental(store, base.snapshot, dropped, staged, stamp, shard_plan.head)
    snapshot = store.snapshot(plan.name, version)
    if snapshot.digest != digest:
        raise RunError(f"{plan.name}@{version} holds other rows than its shards made; nothing was published: run again with --force")  # fmt: skip  # noqa: E501
    return snapshot, carried


def _conserve(site: Site, name: str, snapshot: Snapshot, units_in: int, left: pa.Table) -> None:
    """Units in = units with rows + empty + filtered + quarantined."""
    parents = site.store.scan(snapshot, ["parents"])["parents"]
    with_rows = num_distinct(flat(pc.list_element(parents, 0))) if len(parents) else 0
    if with_rows + left.num_rows != units_in or len(left["unit"].unique()) != left.num_rows:
        raise RunError(f"{name} lost count: {units_in} units in, {with_rows} with rows and {left.num_rows} without; nothing was published, report this with `plait why {name}`")  # fmt: skip  # noqa: E501
