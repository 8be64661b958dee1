"""Steps that are left out: a spike of the loss or of the gradient (OLMo-core, SkipStepOptimizer)."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

WINDOW = 128
"""Steps that a step is compared with; half of them must be there."""


class SpikeGuard:
    """Remembers loss and gradient norm of the last steps, skipped ones too, so that a new level is soon the usual one.

    A step is a spike where loss or norm > mean + sigma * deviation of the steps before it.
    """

    def __init__(self, sigma: float | None, losses: Sequence[float] = (), norms: Sequence[float] = ()) -> None:
        self.sigma = sigma
        self.losses, self.norms = deque(losses, maxlen=WINDOW), deque(norms, maxlen=WINDOW)

    def judge(self, loss: float, norm: float) -> str | None:
        """Why this step must not change the weights, or None; it is remembered from now on."""
        why = None
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed says -1 of a norm that is not finite
            return "the gradient is not finite"
        if self.sigma is not None:
            for name, value, before in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
                if len(before) < WINDOW // 2:
                    continue
                mean, deviation = statistics.fmean(before), statistics.pstdev(before)
                if value > mean + self.sigma * deviation:
                    above = (value - mean) / deviation if deviation else math.inf
                    why = (
                        why or f"its {name}, {value:.4g}, is {above:.1f} deviations above the last {len(before)} steps"
                    )
        self.losses.append(loss)
        self.norms.append(norm)
        return why

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint remembers of it."""
        return {"losses": list(self.losses), "norms": list(self.norms)}
