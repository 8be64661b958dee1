"""The planner: for each stage fresh, incremental or full, on how many units, and why. Runs nothing.

It asks, in this order: is there a `done` under this very key? a `done` of the same recipe over other inputs, to
compare parents with? otherwise all of it. Job stages are one unit: fresh or full. A held edge keeps the inputs
of the last `done` of the same recipe until it is refreshed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from infra.bucket import Bucket
from infra.digests import digest_of
from infra.ledger import Ledger, snapshot_of
from infra.listing import list_source
from infra.store import Store
from infra.types import Snapshot, UserError
from pipelines import rest
from pipelines.ask import Ask
from pipelines.graph import Graph, Node, is_listing
from pipelines.key import code_digest, hash16, materialisation_key, recipe_digest, recipe_tree
from pipelines.units import Base, Difference, Units, compare, edge_units, first_parents, flat
from stages.base import Edge, RowStage

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

LISTING = "listing"
MAX_BASES = 4


@dataclass
class StagePlan:
    """What is to be done for one stage, and all that the runner needs to do it."""

    node: Node
    state: str
    key: str | None = None
    tree: dict[str, Any] = field(default_factory=dict)
    """{"recipe": ..., "inputs": {edge: digest}}: what `key` is the hash of."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Kept beside the tree in key.json, not hashed: the select's clauses, the digest of the code."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    units: list[Units] = field(default_factory=list)
    listing: pa.Table | None = None
    base: Base | None = None
    difference: Difference | None = None
    done: dict[str, Any] | None = None
    keep: int | None = None
    compute: int | None = None
    drop: int | None = None
    held: int | None = 0
    cause: list[dict[str, Any]] = field(default_factory=list)
    warning: str | None = None

    @property
    def name(self) -> str:
        """The dataset that the stage writes."""
        return self.node.name

    @property
    def recipe(self) -> str:
        """Digest of the recipe."""
        return recipe_digest(self.tree["recipe"])

    def to_json(self) -> dict[str, Any]:
        """As `plait plan --json` prints it."""
        names = ("name", "state", "keep", "compute", "drop", "held", "cause")
        return {name: getattr(self, name) for name in names}


class Planner:
    """Plans stages against one ledger."""

    def __init__(self, graph: Graph, root: Bucket, source: Bucket | None, ask: Ask) -> None:
        self.graph = graph
        self.ledger = Ledger(root)
        self.store = Store(root)
        self.source = source
        self.ask = ask
        self.selected = ask.selected(graph)
        self._dones = cache(self.ledger.dones)
        self._stood = cache(self.ledger.stood)
        self.denied = self.ledger.denied()
        self._listed = cache(self._list_source)

    def forget_cache(self) -> None:
        """After a stage was published, its `done` is to be seen."""
        self._dones.cache_clear()

    def plan_all(self) -> list[StagePlan]:
        """Every stage in order; a stage whose inputs are not made yet is "unknown"."""
        current: dict[str, Snapshot | None] = {}
        plans = []
        for node in self.graph:
            plan = self.plan(node, current)
            plans.append(plan)
            current[node.name] = self.standing(plan)
        return plans

    def pipeline_key(self, plans: list[StagePlan]) -> str:
        """Names what this configuration would make: H over the stages' keys, or over what is known of them."""
        return hash16("pipeline", self.graph.name, [[p.name, p.key, p.tree] for p in plans]).hex()

    def standing(self, plan: StagePlan) -> Snapshot | None:
        """The snapshot that readers of a planned stage would get without running it; None if not known."""
        if plan.done:
            return snapshot_of(plan.done)
        if plan.state == "skipped":
            done = self.stood(plan.name)
            return snapshot_of(done) if done else None
        return None

    def stood(self, dataset: str) -> dict[str, Any] | None:
        """The materialisation that the last run stood on; before any run, the last one made."""
        dones = self._dones(dataset)
        used = [d for d in dones if d["key"] == self._stood().get(dataset)]
        return (used or dones or [None])[-1]

    def plan(self, node: Node, current: Mapping[str, Snapshot | None], num_files: int | None = None) -> StagePlan:
        """Plan one stage over the given snapshots of its inputs, or over the first files of the listing."""
        wanted = node.name in self.selected
        needed = any(node.name in self.graph.upstream_of(name) for name in self.selected)
        if not wanted and not needed:
            return StagePlan(node, "skipped", held=None)
        plan = self._over_inputs(node, current, num_files)
        if not wanted:
            if plan.done is None and not self._dones(node.name):
                raise UserError(f"{node.name} has never been made, and the stages asked for read it: run without --only or --from")  # fmt: skip  # noqa: E501
            plan.state, plan.keep, plan.compute, plan.drop, plan.cause = "skipped", None, None, None, []
        return plan

    def _over_inputs(self, node: Node, current: Mapping[str, Snapshot | None], num_files: int | None) -> StagePlan:
        plan = StagePlan(node, "unknown")
        plan.snapshots = {n: s for n in self.graph.inputs_of(node.name) if (s := current.get(n)) is not None}
        missing = [n for n in self.graph.inputs_of(node.name) if n not in plan.snapshots]
        sides = {e.dataset for e in node.stage.inputs if e.role == "side"}
        plan.notes = {"code": code_digest(node.stage), "select": dict(node.select.clauses) if node.select else {}}
        if sides & set(missing):
            return self._unknown(plan, missing)
        recipe = recipe_tree(node.stage, {n: plan.snapshots[n].digest for n in sorted(sides)})
        plan.tree = {"recipe": recipe, "inputs": {}}
        held = self._held_done(node, plan)
        open_edges = [e for e in node.stage.inputs if e.role == "rows" and not (e.held and held)]
        gates = {gate.dataset for e in open_edges if (gate := node.gate(e))}
        gates |= {e.parent[0] for e in open_edges if e.parent}
        if ({e.dataset for e in open_edges} | gates) & set(missing):
            return self._unknown(plan, missing)
        if is_listing(node.stage):
            if self.source is None:
                return self._unknown(plan, [LISTING])
            self._list(plan, num_files)
        self._digest_edges(plan, held, missing)
        plan.key = materialisation_key(plan.tree["recipe"], plan.tree["inputs"])
        return self._decide(plan)

    def _unknown(self, plan: StagePlan, missing: list[str]) -> StagePlan:
        last = self._last(plan.name)
        was = last["tree"]["inputs"] | last["tree"]["recipe"]["sides"] if last else {}
        plan.cause = [{"leaf": f"inputs.{n}", "was": was.get(n), "now": None} for n in missing]
        plan.held = None
        return plan

    def _held_done(self, node: Node, plan: StagePlan) -> dict[str, Any] | None:
        """The last `done` of the same recipe that had rows, where the stage has held edges that are not refreshed."""
        refreshed = node.name in self.ask.refresh or (self.ask.force and node.name in self.selected)
        if refreshed or not any(e.held for e in node.stage.inputs):
            return None
        same = [d for d in self._dones(node.name) if d["recipe"] == plan.recipe and d["snapshot"]["rows"]]
        return same[-1] if same else None

    def num_listed(self) -> int:
        """How many files the frozen listing has."""
        return self._listed().num_rows

    def _list_source(self) -> pa.Table:
        """The listing, frozen at the first look."""
        assert self.source is not None
        return list_source(self.source, self.ask.limit, exclude=self.store.bucket.uri)

    def _list(self, plan: StagePlan, num_files: int | None) -> None:
        listing = plan.listing = self._listed().slice(0, num_files)
        keys = flat(listing["key"])
        plan.units = [Units(LISTING, keys, np.arange(len(keys)), digest_of(keys))]
        plan.tree["inputs"] = {LISTING: plan.units[0].digest}

    def _digest_edges(self, plan: StagePlan, held: dict[str, Any] | None, missing: list[str]) -> None:
        plan.held = 0
        for edge in plan.node.stage.inputs:
            if edge.role != "rows":
                continue
            gate = plan.node.gate(edge)
            ready = edge.dataset not in missing and not (gate and gate.dataset in missing)
            units = self._edge(plan, edge) if ready else None
            if edge.held and held is not None:
                then = held["inputs"][edge.dataset]
                moved = units is not None and units.digest != then["digest"]
                plan.held = (
                    None if units is None else (plan.held or 0) + (len(units.keys) - then["units"] if moved else 0)
                )
                plan.tree["inputs"][edge.dataset] = then["digest"]
            elif units is not None:
                plan.units.append(units)
                plan.tree["inputs"][edge.dataset] = units.digest

    def _edge(self, plan: StagePlan, edge: Edge) -> Units:
        select = plan.node.gate(edge)
        scores = plan.snapshots[select.dataset] if select else None
        denied = self.denied if is_listing(self.graph.node(edge.dataset).stage) else []
        return edge_units(self.store, edge, plan.snapshots[edge.dataset], select, scores, denied)

    def _decide(self, plan: StagePlan) -> StagePlan:
        assert plan.key is not None
        folder = self.ledger.folder(plan.name, plan.key)
        wanted = sum(len(u.keys) for u in plan.units)
        done = folder.done()
        self._warn(plan, done)
        retry = self.ask.retry_quarantined and done is not None and done["quarantined"] > 0
        if done and not (plan.name in self.selected and (self.ask.force or retry)):
            plan.done, plan.state, plan.keep, plan.compute, plan.drop = done, "fresh", wanted, 0, 0
            return plan
        if not isinstance(plan.node.stage, RowStage):
            plan.state, plan.keep, plan.compute, plan.drop = "full", 0, 1, 0
        elif self.ask.force or not self._incremental(plan, done):
            plan.state, plan.keep, plan.compute, plan.drop = "full", 0, wanted, 0
            plan.base = plan.difference = None
        plan.cause = [{"leaf": "force", "was": False, "now": True}] if done and self.ask.force else self._cause(plan)
        if retry and not self.ask.force:
            plan.cause = [{"leaf": "retry_quarantined", "was": False, "now": True}]
        return plan

    def _incremental(self, plan: StagePlan, own: dict[str, Any] | None) -> bool:
        """Compare with the last materialisations of the same recipe; False where nothing of them can be kept.

        Of the last few, the one of which most can be kept is the base: settings that go back and forth find theirs.
        """
        same = [own] if own else [d for d in self._dones(plan.name) if d["recipe"] == plan.recipe]
        wanted = pa.concat_arrays([u.keys for u in plan.units])
        best: tuple[int, Base, Difference] | None = None
        for done in reversed([d for d in same if d["snapshot"]["rows"]][-MAX_BASES:]):
            base = self.base(done)
            difference = compare(wanted, base, self.ask.retry_quarantined)
            if difference.num_kept_units > (best[0] if best else 0):
                best = (difference.num_kept_units, base, difference)
        if best is None:
            return False
        plan.state, (plan.keep, plan.base, plan.difference) = "incremental", best
        plan.compute, plan.drop = len(plan.difference.compute), plan.difference.num_dropped_units
        return True

    def base(self, done: dict[str, Any]) -> Base:
        """A published materialisation with its units and its rest."""
        snapshot = snapshot_of(done)
        table = self.store.scan(snapshot, ["parents"])
        tried = self.rest(done)
        mask = pc.equal(tried["by"], "stage")
        return Base(snapshot, done, first_parents(table["parents"]), tried.filter(mask))

    def rest(self, done: Mapping[str, Any]) -> pa.Table:
        """The rest of a published materialisation."""
        if not done.get("rest"):
            return rest.EMPTY
        return rest.from_bytes(self.ledger.folder(done["dataset"], done["key"]).get_bytes(done["rest"]))

    def _last(self, dataset: str) -> dict[str, Any] | None:
        dones = self._dones(dataset)
        return self.ledger.folder(dataset, dones[-1]["key"]).get("key.json") if dones else None

    def _warn(self, plan: StagePlan, done: dict[str, Any] | None) -> None:
        last = self.ledger.folder(plan.name, done["key"]).get("key.json") if done else self._last(plan.name)
        if not last:
            return
        same = last["tree"]["recipe"].get("revision") == plan.tree["recipe"]["revision"]
        if same and last["notes"].get("code") not in (None, plan.notes["code"]):
            plan.warning = f"{plan.name}: code changed, revision did not; if results changed, bump its `revision`"

    def _cause(self, plan: StagePlan) -> list[dict[str, Any]]:
        """The leaves of the key's tree (and of the select) that differ from the last materialisation."""
        last = self._last(plan.name)
        if last is None:
            return [{"leaf": "never made", "was": None, "now": plan.key}]
        was, now = (leaves(x["tree"], x["notes"]) for x in (last, {"tree": plan.tree, "notes": plan.notes}))
        moved = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
        return [{"leaf": name, "was": was.get(name), "now": now.get(name)} for name in moved]


def leaves(tree: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """A key's tree and the select's clauses, flat: what `why` and `diff` compare."""
    flat_tree: dict[str, Any] = {f"inputs.{k}": v for k, v in tree["inputs"].items()}
    for name, value in tree["recipe"].items():
        prefix = "inputs" if name == "sides" else name
        if isinstance(value, Mapping):
            flat_tree |= {f"{prefix}.{k}": v for k, v in value.items()}
        else:
            flat_tree[name] = value
    return flat_tree | {f"select.{k}": v for k, v in notes.get("select", {}).items()}
