"""What a materialisation publishes: the document of `done.N`, the rest beside it, and where a run works."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra import requests
from infra.bucket import Bucket
from infra.faults import crash_point
from infra.fleet import Fleet
from infra.lane import Watch
from infra.ledger import Folder
from infra.runs import OpenRun
from infra.store import Store
from infra.telemetry import Meter
from infra.types import Snapshot
from pipelines import rest
from pipelines.graph import is_listing
from pipelines.plan import Planner, StagePlan


@dataclass(frozen=True)
class Site:
    """Where a run works: everything but the plan."""

    planner: Planner
    root: Bucket
    source: Bucket | None
    run: OpenRun
    """Who asked for it: its log, and whether it is to stop."""
    fleet: Callable[[], Fleet]
    """The actors of this run; Ray is started when it is first asked for."""
    ray: Callable[[], Any]
    """The `ray` module, connected; Ray is started when it is first asked for."""
    release_actors: Callable[[], None]
    """Stop the actors that no stage uses."""
    show: Callable[[str, int, int, str], None]
    """Progress: stage, done, total, what."""
    note: Callable[[str], None]
    """A sentence for the screen and the log."""

    tracker: Callable[[], Any]
    """Makes a Tracker, or None where MLflow is not wanted."""
    current: Mapping[str, Snapshot | None]
    """The snapshots that this run stands on so far."""
    wave: str | None = None
    """Which wave this is, unless it is the last one: then it is what one go would have made."""

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self.run.run_id

    @property
    def resume(self) -> str:
        """The command that goes on after a failure."""
        return self.run.resume

    def watch(
        self, name: str, on_shard: Callable[..., None], notice: Callable[[str], None], meter: Meter | None = None
    ) -> Watch:
        """What this run hears of a stage's actors; `meter`: where its rows are what they work on."""

        def on_requests(found: Mapping[str, int]) -> None:
            requests.add(found)
            if meter:
                meter.asked(found)

        def on_actors(count: int) -> None:
            if meter:
                meter.working(count)

        def on_log(said: Mapping[str, Any]) -> None:
            self.run.heard(name, said)

        return Watch(on_shard, on_log, notice, self.run.check, on_actors, on_requests)

    @property
    def store(self) -> Store:
        """The datasets of the root."""
        return self.planner.store

    def where_raw_lies(self) -> Snapshot | None:
        """The newest listing: raw content is found there by digest, so a moved file costs nothing."""
        listed = next(node.name for node in self.planner.graph if is_listing(node.stage))
        return self.current[listed]


@dataclass(frozen=True)
class Made:
    """A materialisation after this run worked on it."""

    done: dict[str, Any]
    computed: int
    adopted: bool = False


def must(done: dict[str, Any] | None) -> dict[str, Any]:
    """A document that this process has just put or seen."""
    assert done is not None
    return done


def done_of(
    site: Site, plan: StagePlan, folder: Folder, snapshot: Snapshot, number: int, left: pa.Table, units_in: int
) -> dict[str, Any]:
    """Pin the version, put the rest, and give the document that becomes `done.N`."""
    site.store.tag(snapshot, f"m.{plan.key}.{number}")
    crash_point("tagged", plan.name)
    rest_name = put_rest(folder, number, left)
    crash_point("rest", plan.name)
    return {
        "dataset": plan.name,
        "key": plan.key,
        "recipe": plan.recipe,
        "plan": number,
        "why": why_made(plan),
        "snapshot": snapshot.to_json(),
        "inputs": inputs_of(plan),
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


def why_made(plan: StagePlan) -> str:
    """made, force or retry_quarantined."""
    leaf = plan.cause[0]["leaf"] if plan.cause else ""
    return leaf if leaf in ("force", "retry_quarantined") else "made"


def inputs_of(plan: StagePlan) -> dict[str, Any]:
    """Every input with its pinned snapshot and what it gave to the key."""
    found: dict[str, Any] = {}
    for name, snapshot in plan.snapshots.items():
        units = next((u for u in plan.units if u.dataset == name), None)
        digest = units.digest if units is not None else snapshot.digest
        count = len(units.keys) if units is not None else snapshot.rows
        edge = next((e for e in plan.node.stage.inputs if e.dataset == name), None)
        is_judge = plan.node.select is not None and plan.node.select.dataset == name
        role = edge.role if edge else "select" if is_judge else "parent"
        unit = edge.unit if edge else "key"
        found[name] = {"snapshot": snapshot.to_json(), "digest": digest, "units": count, "role": role, "unit": unit}
    return found
