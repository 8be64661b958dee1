"""Run a pipeline: plan each stage over what stands, materialise what is stale, tell MLflow, keep the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.actors import Pool
from infra.bucket import Bucket
from infra.ledger import snapshot_of
from infra.types import PlaitError, Snapshot, now_utc
from infra.world import world_failed
from pipelines.materialise import materialise, reselect
from pipelines.plan import Ask, Planner, StagePlan
from pipelines.publish import Site
from pipelines.report import entry
from pipelines.tell import Cards, Teller


class Progress(Protocol):
    """What a run shows while it works."""

    def stage(self, name: str, done: int, total: int, what: str) -> None:
        """Units done of a stage."""
        ...

    def finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has ended."""
        ...

    def note(self, sentence: str) -> None:
        """A sentence for the person."""
        ...


@dataclass
class Services:
    """The outside world of a run; each is made when it is first needed."""

    root: Bucket
    source: Bucket | None
    ray: Callable[[], Any]
    tracker: Callable[[], Any]
    cards: Cards
    progress: Progress
    resume: str
    pools: dict[tuple[float, float], Pool] = field(default_factory=dict)

    def pool(self, plan: StagePlan) -> Pool:
        """Actors of the stage's size, shared by all stages of that size."""
        placement = plan.node.placement
        size = (placement.cpus, placement.gpus)
        if size not in self.pools:
            self.ray()
            self.pools[size] = Pool(*size)
        self.pools[size].size = placement.workers
        return self.pools[size]

    def release_pools(self) -> None:
        """Stop all actors, so that a job stage has the machine."""
        for pool in self.pools.values():
            pool.close()
        self.pools = {}


@dataclass
class Result:
    """What a run did, as `--json` prints it."""

    run_id: str
    root: str
    ok: bool = False
    """True once every stage has ended well: a run that is cut off in between was not."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `run` and `status`."""
        by_name = {s["name"]: s for s in self.stages}
        found = {
            "ok": self.ok,
            "run_id": self.run_id,
            "root": self.root,
            "stages": [{k: v for k, v in s.items() if k not in ("metrics", "key", "reasons")} for s in self.stages],
            "evaluation": by_name.get("evals", {}).get("metrics", {}),
            "checkpoint": by_name.get("model", {}).get("checkpoint"),
        }
        return found | ({"error": self.error} if self.error else {})


class Runner:
    """One pipeline run."""

    def __init__(self, planner: Planner, services: Services, ask: Ask, record: Mapping[str, Any]) -> None:
        self.planner = planner
        self.services = services
        self.ask = ask
        self.record = dict(record)
        self.run_id = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{time.time_ns() % 10**9:09d}"
        self.current: dict[str, Snapshot | None] = {}
        self.result = Result(self.run_id, services.root.uri)
        self.teller = Teller(planner.ledger, planner.store, services.cards, services.tracker)

    def run(self) -> Result:
        """Every stage in order; the first error ends the run with its sentence, and what is published stays."""
        try:
            for node in self.planner.graph:
                plan = self.planner.plan(node, self.current)
                if plan.warning:
                    self.services.progress.note(plan.warning)
                self._stage(plan)
            self.result.ok = True
        except (PlaitError, OSError) as error:
            failure = error if isinstance(error, PlaitError) else world_failed(error, self.services.resume)
            self.result.error = str(failure)
            raise failure from (None if failure is error else error)
        finally:
            self.services.release_pools()
            with suppress(PlaitError, OSError) if self.result.error else nullcontext():  # what failed first is said
                self._write_record()
            self.teller.end(self.result.ok)
        return self.result

    def _stage(self, plan: StagePlan) -> None:
        if plan.state == "unknown":
            raise PlaitError(f"{plan.name} cannot be planned: {plan.cause[0]['leaf']} has never been made")
        if plan.state in ("fresh", "skipped"):
            self.current[plan.name] = self.planner.standing(plan)
            done = reselect(self.planner, plan) if plan.state == "fresh" else plan.done or self.planner.stood(plan.name)
            self._add(plan, done, plan.state, 0, plan.keep or 0)
            return
        try:
            made = materialise(self._site(), plan)
        except PlaitError as error:
            self.result.stages.append(entry(plan, None, "failed", 0, 0, None) | {"error": str(error)})
            raise
        self.planner.forget_cache()
        self.current[plan.name] = snapshot_of(made.done)
        kept = (plan.keep or 0) if not made.adopted else made.done["rows_in"]
        self._add(plan, made.done, made.done["state"], made.computed, kept)

    def _add(self, plan: StagePlan, done: dict[str, Any] | None, state: str, computed: int, kept: int) -> None:
        if done and state != "skipped":
            self._tell(done)
        told = self.teller.told(done) if done else None
        new = entry(plan, done, state, computed, kept, told)
        if done and plan.name == "model" and done["snapshot"]["rows"]:
            new["checkpoint"] = self.last_checkpoint(snapshot_of(done))
        self.result.stages.append(new)
        self.services.progress.finished(new)

    def last_checkpoint(self, snapshot: Snapshot) -> str:
        """Address of the manifest of the highest step."""
        table = self.planner.store.scan(snapshot, ["step", "manifest"]).sort_by("step")
        return self.services.root.url(table["manifest"][table.num_rows - 1].as_py())

    def _tell(self, done: Mapping[str, Any]) -> None:
        """Tell MLflow, also of what an earlier run published and did not live to tell."""
        before = self.teller.trouble
        if not self.teller.tell(done) and self.teller.trouble != before:
            self.services.progress.note(f"{self.teller.trouble}; the run goes on, `plait sync` tells it later")

    def _site(self) -> Site:
        services = self.services
        return Site(self.planner, services.root, services.source, self.run_id, services.resume, services.pool, services.release_pools, services.progress.stage, self.current)  # fmt: skip  # noqa: E501

    def _write_record(self) -> None:
        document = {**self.record, **self.result.to_json(), "at": now_utc(), "pipeline": self.planner.graph.name}
        document["stages"] = self.result.stages
        self.planner.ledger.record_run(self.run_id, document)
