"""What a job stage is handed: pinned inputs, checkpoints, and a place for metrics and pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.bucket import Bucket
from infra.checkpoints import CheckpointFolder
from infra.store import SnapshotReader
from infra.types import Snapshot
from pipelines.units import Units
from pipelines.worker import fetch_checkpoint


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
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reader(self, dataset: str) -> SnapshotReader:
        """The rows of an edge that pass its gate."""
        return SnapshotReader(self.root, self.snapshots[dataset], self.units[dataset].positions)

    def checkpoint(self, dataset: str) -> Path:
        """Local folder with the verified files of a side checkpoint."""
        return fetch_checkpoint(self.root, self.snapshots[dataset], Path(tempfile.mkdtemp(dir=self.scratch)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step."""
        self.metrics.append((step, {k: float(v) for k, v in metrics.items()}))

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Final metrics, kept in the ledger."""
        self.final |= {k: float(v) for k, v in metrics.items()}

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the progress bar."""
        self.show(done, total, what)

    def picture(self, name: str, png: bytes) -> None:
        """A picture for people."""
        self.pictures[name] = png

    def reject(self, key: bytes, label: str, reason: str) -> None:
        """An input row that gave nothing, on purpose."""
        entry = {"unit": key.hex(), "label": label, "state": "filtered", "reason": reason, "error": None, "attempt": 1}
        self.rejected.append(entry)
