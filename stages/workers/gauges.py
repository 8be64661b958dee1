"""What a training tells, as Ray metrics: gauges that Prometheus scrapes from the node on which the sink runs.

`loss/text` of the stage `model` becomes `plait_train_loss_text{stage="model", run="<run id>"}`, which Ray exports with
`ray_` before it. Setting one costs a few microseconds and reaches nobody by itself: every ten seconds Ray hands what
was set since to the node's metrics agent, which forgets it after twenty. So what stays as it is must be set again and
again, and a training that has ended leaves the metrics by itself. Values that are not finite are left out by Ray. Not
a stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PREFIX = "plait_train_"
TOLD = {
    "step": "Steps made.",
    "loss": "Weighted loss.",
    "mfu": "Model FLOPs utilisation, 0 to 1.",
    "hfu": "The same with what is computed again for the backward pass.",
    "tokens_per_s": "Places in the trunk a second.",
    "step_s": "Measured seconds a step.",
    "step_s/predicted": "Predicted seconds a step.",
    "stalled_share": "Share of the time that rank 0 waited for data.",
    "saving_share": "Share of the time that checkpoints kept rank 0 from training.",
    "imbalance": "FLOPs of the rank with the most, over the mean.",
    "tflops_per_rank": "TFLOP a second and rank.",
    "memory_gib": "Most memory that rank 0 has held.",
    "skipped": "Steps that were skipped as spikes since the workers started.",
    "tokens_seen": "Places in the trunk so far.",
    "lr": "Learning rate.",
    "grad_norm": "Norm of the gradient before clipping.",
}
"""Descriptions; those of what stands behind a slash are made of the metric before it."""


class Gauges:
    """One gauge for each metric of a stage, declared when it is first told."""

    def __init__(self, stage: str, run: str) -> None:
        self._tags = {"stage": stage, "run": run}
        self._declared: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    def set(self, metrics: Mapping[str, float]) -> None:
        """These are the metrics' values from now on."""
        for metric, value in metrics.items():
            if metric not in self._declared:
                self._declared[metric] = self._declare(metric)
            self._last[metric] = float(value)
        self.again()

    def again(self) -> None:
        """The values are still these; to be said every few seconds."""
        for metric, value in self._last.items():
            self._declared[metric].set(value)

    def _declare(self, metric: str) -> Any:
        from ray.util.metrics import Gauge

        gauge = Gauge(name_of(metric), description=described(metric), tag_keys=tuple(self._tags))
        return gauge.set_default_tags(self._tags)


def name_of(metric: str) -> str:
    """Prometheus allows letters, digits and _."""
    return PREFIX + re.sub(r"\W", "_", metric, flags=re.ASCII)


def described(metric: str) -> str:
    """One sentence, or the metric's own name."""
    whole, _, part = metric.partition("/")
    if metric in TOLD or whole not in TOLD:
        return TOLD.get(metric, metric)
    return f"{TOLD[whole].removesuffix('.')}: {part}."
