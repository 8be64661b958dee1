"""Job stages: what one is handed (pinned inputs, checkpoints, a place for metrics and pictures), and how it is run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.bucket import Bucket
from infra.capture import capture
from infra.checkpoints import CheckpointFolder
from infra.commits import publish_full
from infra.ledger import Folder
from infra.runs import OpenRun
from infra.store import SnapshotReader
from infra.types import Row, Snapshot
from pipelines import rest
from pipelines.key import RowKeys
from pipelines.live import Curve
from pipelines.plan import StagePlan
from pipelines.publish import Made, Site, done_of
from pipelines.tell import keep_for_telling
from pipelines.units import Units
from pipelines.worker import fetch_checkpoint
from stages.base import JobStage, Training

JOB_ROWS_PER_FRAGMENT = 4096


@dataclass
class EngineJob:
    """The `Job` that stages see; what they report is collected here for the ledger and MLflow."""

    root: Bucket
    scratch: Path
    num_workers: int
    checkpoints: CheckpointFolder
    snapshots: Mapping[str, Snapshot]
    units: Mapping[str, Units]
    show: Callable[[int, int, str], None]
    run: OpenRun
    warn: Callable[[str], None]
    training: Training
    profile: bool
    connect: Callable[[], Any]
    curve: Curve
    final: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """The run that it is part of."""
        return self.run.run_id

    def reader(self, dataset: str) -> SnapshotReader:
        """The rows of an edge that pass its gate."""
        return SnapshotReader(self.root, self.snapshots[dataset], self.units[dataset].positions)

    def checkpoint(self, dataset: str) -> Path:
        """Local folder with the verified files of a side checkpoint."""
        return fetch_checkpoint(self.root, self.snapshots[dataset], Path(tempfile.mkdtemp(dir=self.scratch)))

    def ray(self) -> Any:
        """The `ray` module, connected to this run's cluster."""
        return self.connect()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step; a step that was told before keeps what was told."""
        self.run.check()
        self.curve.add(step, metrics)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Final metrics, kept in the ledger."""
        self.final |= {k: float(v) for k, v in metrics.items()}

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the progress bar."""
        self.run.check()
        self.show(done, total, what)

    def note(self, sentence: str) -> None:
        """For the run's log and the screen."""
        self.warn(sentence)

    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self.run.stopping()

    def picture(self, name: str, data: bytes) -> None:
        """A picture, or another file, for people."""
        self.pictures[name] = data

    def reject(self, key: bytes, label: str, reason: str) -> None:
        """An input row that gave nothing, on purpose."""
        entry = {"unit": key.hex(), "label": label, "state": "filtered", "reason": reason, "error": None, "attempt": 1}
        self.rejected.append(entry)


def run_job(site: Site, plan: StagePlan, folder: Folder) -> Made:
    """Run a job stage over its pinned inputs; with nothing to work on it publishes an empty snapshot."""
    number = folder.last("done") + 1
    edges = {u.dataset: u for u in plan.units}
    sides = [e.dataset for e in plan.node.stage.inputs if e.role == "side"]
    idle = bool(plan.units) and not any(len(u.keys) for u in plan.units)
    empty = idle or any(plan.snapshots[s].rows == 0 for s in sides)
    checkpoints = CheckpointFolder(site.root, f"checkpoints/{plan.name}/{plan.key}.{number}")
    scratch = Path(tempfile.mkdtemp(prefix=f"plait-{plan.name}-"))
    show = lambda done, total, what: site.show(plan.name, done, total, what)  # noqa: E731
    place, profile = plan.node.placement, site.planner.ask.profile
    curve = Curve(folder, number, site.run_id, site.planner.graph.name, site.tracker, site.note)
    job = EngineJob(site.root, scratch, place.workers, checkpoints, plan.snapshots, edges, show, site.run, site.note, place.training, profile, site.ray, curve)  # fmt: skip  # noqa: E501
    try:
        stage = plan.node.stage
        assert isinstance(stage, JobStage)
        head = site.store.head(plan.name)
        site.release_actors()
        with curve, capture() as said:
            try:
                staged = [] if empty else _stage_job(site, plan, stage.run(job))
            finally:
                site.run.heard(plan.name, said.report())
        version = publish_full(site.store, plan.name, stage.schema, staged, f"{plan.key}.{number}", head)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    snapshot = site.store.snapshot(plan.name, version)
    left = rest.join([rest.from_rows(job.rejected), *(rest.from_select(u.gated_out) for u in plan.units)])
    units_in = sum(len(u.keys) + u.gated_out.num_rows for u in plan.units)
    done = done_of(site, plan, folder, snapshot, number, left, units_in)
    done |= {"state": "empty" if empty else "done", "metrics": job.final}
    keep_for_telling(folder, number, curve.points(), job.pictures)
    return Made(done, 0 if empty else 1)


def _stage_job(site: Site, plan: StagePlan, rows: Iterator[Row]) -> list[str]:
    keys = RowKeys(plan.node.stage, plan.recipe)
    own = plan.node.stage.schema
    staged: list[str] = []
    batch: list[Row] = []
    for row in rows:
        site.run.check()
        parents = list(row["parents"])
        batch.append({"label": plan.name, **row, "key": keys.next(parents, row), "parents": parents})
        if len(batch) >= JOB_ROWS_PER_FRAGMENT:
            staged += site.store.stage(plan.name, batch, own).fragments
            batch = []
    return staged + list(site.store.stage(plan.name, batch, own).fragments)
