"""Run a pipeline: plan each stage over what stands, materialise what is stale, tell MLflow, keep the record."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from infra.bucket import Bucket
from infra.fleet import Fleet
from infra.ledger import snapshot_of
from infra.runs import OpenRun
from infra.types import PlaitError, Snapshot, UserError, now_utc
from infra.world import world_failed
from pipelines import waves
from pipelines.ask import Ask
from pipelines.checkpoints import last_manifest
from pipelines.graph import Node
from pipelines.materialise import materialise, reselect
from pipelines.plan import Planner
from pipelines.publish import Site
from pipelines.report import COUNTS, entry, requests_of
from pipelines.shown import Progress, Shown
from pipelines.tell import Cards, Tales, Teller
from pipelines.waves import Brought, Wave


def new_run_id() -> str:
    """An id that sorts by time."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{time.time_ns() % 10**9:09d}"


def exit_code(error: PlaitError) -> int:
    """What a command ends with after this error."""
    return 2 if isinstance(error, UserError) else 1


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
    tales: Tales | None = None
    can_grow: bool = False
    """Whether the cluster may add nodes: then what does not fit today is waited for."""
    _fleet: Fleet | None = None
    _lock: Any = field(default_factory=threading.Lock)

    def fleet(self) -> Fleet:
        """The actors of this run, shared by all its stages."""
        with self._lock:
            if self._fleet is None:
                self._fleet = Fleet(self.ray(), self.can_grow)
            return self._fleet

    def stop_actors(self, why: BaseException) -> None:
        """End every stage that works now, with that error."""
        if self._fleet is not None:
            self._fleet.stop(why)

    def release_actors(self) -> None:
        """Stop the actors that no stage uses, so that a job stage has the machine."""
        if self._fleet is not None:
            self._fleet.release()


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
        self.run_id: str = self.record.pop("run_id", None) or new_run_id()
        self.current: dict[str, Snapshot | None] = {}
        self.result = Result(self.run_id, services.root.uri)
        self.shown = Shown(services.progress)
        command, job = self.record.get("command", []), self.record.get("job")
        self.open = OpenRun(services.root, self.run_id, command, services.resume, job, self.shown.document)
        self.teller = Teller(planner.ledger, planner.store, services.cards, services.tracker, services.tales)

    def run(self) -> Result:
        """Every stage in order; the first error ends the run with its sentence, and what is published stays."""
        self.open.open()
        try:
            if self.ask.wave:
                self._stream(self.ask.wave)
            for node in self.planner.graph:
                if node.name not in self.current:
                    self.open.check()
                    self._record(self._bring(node, None, self.current))
            self.result.stages.sort(key=lambda s: self.planner.graph.names.index(s["name"]))
            self.result.ok = True
        except (PlaitError, OSError) as error:
            failure = error if isinstance(error, PlaitError) else world_failed(error, self.services.resume)
            self.result.error = str(failure)
            self.record["exit"] = exit_code(failure)
            raise failure from (None if failure is error else error)
        finally:
            self._end()
        return self.result

    def _end(self) -> None:
        """The actors, the log, the record, MLflow: in this order, since the record says that the run has ended."""
        stopped = self.open.stopping() and not self.result.ok
        self.services.release_actors()
        how = "well" if self.result.ok else self.result.error or "cut off in between"
        self.open.say(f"the run ends: {how}", level="info" if self.result.ok else "error")
        self.open.close()
        with suppress(PlaitError, OSError) if self.result.error else nullcontext():  # what failed first is said
            self._write_record(stopped)
        self.teller.end("FINISHED" if self.result.ok else "KILLED" if stopped else "FAILED")

    def _note(self, sentence: str) -> None:
        self.shown.note(sentence)
        self.open.say(sentence, level="warning")

    def _stream(self, num_files: int) -> None:
        """The stages that need not see the whole set, wave by wave and all at the same time."""
        still = waves.standing_still(self.planner)
        nodes = waves.streamed(self.planner.graph, still)
        streamed = {node.name for node in nodes}
        if all(p.state in ("fresh", "skipped") for p in self.planner.plan_all() if p.name in streamed):
            return
        self.services.fleet()  # here, for Ray can be started by a process's first thread alone
        cut = waves.cut(self.planner.num_listed(), num_files)
        flood = waves.Flood(nodes, self.planner.graph, cut, self.ask.lag, still, self._bring, self.services.stop_actors)
        computed: Counter[str] = Counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        asked: defaultdict[str, Counter[str]] = defaultdict(Counter)

        def ended(brought: Brought, wave: Wave) -> None:
            name = brought.plan.name
            computed[name] += brought.computed
            seconds[name] += brought.seconds
            if brought.seconds:
                asked[name].update(requests_of(brought.done))
            if wave.is_last:
                total, found = computed[name], brought.done or {}
                state = brought.state if not total else found["state"]
                kept = max(0, (found.get("rows_in") or 0) - total)
                all_waves = replace(brought, state=state, computed=total, kept=kept, seconds=seconds[name])
                self._record(all_waves, asked[name])

        flood.run(ended)

    def _bring(self, node: Node, wave: Wave | None, current: Mapping[str, Snapshot | None]) -> Brought:
        """Plan one stage over what stands, and materialise it where it is stale. May run in a thread of its own."""
        plan = self.planner.plan(node, current, wave.num_files if wave else None)
        if plan.warning and (wave is None or wave.number == 1):
            self._note(plan.warning)
        if plan.state == "unknown":
            raise PlaitError(f"{plan.name} cannot be planned: {plan.cause[0]['leaf']} has never been made")
        if plan.state in ("fresh", "skipped"):
            done = reselect(self.planner, plan) if plan.state == "fresh" else plan.done or self.planner.stood(plan.name)
            return Brought(plan, done, plan.state, self.planner.standing(plan), 0, plan.keep or 0)
        self.open.say(f"{plan.state}: {plan.compute} units to compute, {plan.keep or 0} kept", plan.name)
        try:
            made = materialise(self._site(current, wave), plan)
        except PlaitError as error:
            self.open.say(str(error), plan.name, level="error")
            self.result.stages.append(entry(plan, None, "failed", 0, 0, None) | {"error": str(error)})
            raise
        self.planner.forget_cache()
        kept = (plan.keep or 0) if not made.adopted else made.done["rows_in"]
        seconds = 0.0 if made.adopted else made.done["seconds"]
        return Brought(plan, made.done, made.done["state"], snapshot_of(made.done), made.computed, kept, seconds)

    def _record(self, brought: Brought, asked: Mapping[str, int] | None = None) -> None:
        """Stand on a stage from now on, tell MLflow, and show it."""
        plan, done = brought.plan, brought.done
        self.current[plan.name] = brought.snapshot
        if done and brought.state != "skipped":
            self._tell(done)
        told = self.teller.told(done) if done else None
        new = entry(plan, done, brought.state, brought.computed, brought.kept, told)
        if self.ask.wave and brought.seconds:
            new |= {"seconds": round(brought.seconds, 3), "requests": dict(asked or new["requests"])}
        if done and plan.name == "model" and done["snapshot"]["rows"]:
            new["checkpoint"] = self.last_checkpoint(snapshot_of(done))
        self.result.stages.append(new)
        counts = ", ".join(f"{new[name]} {name}" for name in COUNTS if new[name])
        self.open.say(f"{brought.state}: {counts}; {new['seconds']} s", plan.name)
        self.shown.finished(new)

    def last_checkpoint(self, snapshot: Snapshot) -> str:
        """Address of the manifest of the highest step."""
        return self.services.root.url(last_manifest(self.planner.store, snapshot)[0])

    def _tell(self, done: Mapping[str, Any]) -> None:
        """Tell MLflow, also of what an earlier run published and did not live to tell."""
        before = self.teller.trouble
        if not self.teller.tell(done) and self.teller.trouble != before:
            self._note(f"{self.teller.trouble}; the run goes on, `plait sync` tells it later")

    def _site(self, current: Mapping[str, Snapshot | None], wave: Wave | None) -> Site:
        services = self.services

        def show(name: str, done: int, total: int, what: str) -> None:
            self.shown.stage(name, done, total, f"{wave}  {what}" if wave and wave.total > 1 else what)

        name = str(wave) if wave and not wave.is_last else None
        return Site(self.planner, services.root, services.source, self.open, services.fleet, services.ray, services.release_actors, show, self._note, services.tracker, current, name)  # fmt: skip  # noqa: E501

    def _write_record(self, stopped: bool) -> None:
        document = {**self.record, **self.result.to_json(), "at": now_utc(), "pipeline": self.planner.graph.name}
        document |= {"stages": self.result.stages, "stopped": stopped}
        self.planner.ledger.record_run(self.run_id, document)
