"""How fast training is, beside what the hardware could do.

    MFU = training FLOPs of the packs (models/flops.py: 3x forward) / (seconds * ranks * peak of one rank)
    HFU = the same with what is computed again for the backward pass (`recompute`: 4x forward)

Predicted step time: FLOPs of the rank with the most, times the seconds a FLOP took of late. It is what the packer
balances, so that measured over predicted shows stalls and what FLOPs do not count.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections import deque

import torch

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""Dense bf16 FLOP/s by NVIDIA's data sheets, by a part of the device's name."""
_STEPS = 32
_WARM_MATMULS = 3


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one rank: of a GPU that is known in bf16 by its data sheet, of others measured by a matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, flops in PEAKS.items():
            if part in name:
                return flops
    size = 8192 if device.type == "cuda" else 768
    one = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(_WARM_MATMULS + 3):
        began = time.perf_counter()
        _ = one @ one
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[_WARM_MATMULS:])


class Speed:
    """What the steps since the last report took; on rank 0."""

    def __init__(self, peak: float, world: int, recompute: bool, device: torch.device) -> None:
        self._peak, self._world, self._device = peak, world, device
        self._more = 4 / 3 if recompute else 1.0
        self._of_flop: deque[float] = deque(maxlen=_STEPS)
        self._at = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self._steps, self._seconds, self._flops, self._predicted_s = 0, 0.0, 0.0, 0.0
        self._most, self._mean = 0.0, 0.0
        self._tokens = {"text": 0.0, "vision": 0.0}
        self._places = 0.0

    def step(self, flops_of_rank: list[float], places: float, text: float, vision: float) -> None:
        """One step has ended: FLOPs of each rank, places in the trunk, supervised tokens by modality, of all ranks."""
        now = time.monotonic()
        took, self._at = now - self._at, now
        most = max(flops_of_rank)
        self._predicted_s += most * statistics.median(self._of_flop) if self._of_flop else took
        if most:
            self._of_flop.append(took / most)
        self._steps += 1
        self._seconds += took
        self._flops += sum(flops_of_rank)
        self._most, self._mean = self._most + most, self._mean + sum(flops_of_rank) / len(flops_of_rank)
        self._places += places
        self._tokens["text"] += text
        self._tokens["vision"] += vision

    def report(self, stalled_s: float, saving_s: float) -> dict[str, float]:
        """Metrics since the last report; `stalled_s` waited for data, `saving_s` held up by checkpoints, on rank 0."""
        seconds, steps = max(self._seconds, 1e-9), max(self._steps, 1)
        mfu = self._flops / (seconds * self._world * self._peak)
        told = {
            "tokens_per_s": self._places / seconds,
            **{f"tokens_per_s/{name}": count / seconds for name, count in self._tokens.items() if count},
            "mfu": mfu,
            "hfu": mfu * self._more,
            "tflops_per_rank": self._flops / seconds / self._world / 1e12,
            "step_s": seconds / steps,
            "step_s/predicted": self._predicted_s / steps,
            "imbalance": self._most / self._mean if self._mean else 1.0,
            "stalled_share": stalled_s / seconds,
            "saving_share": saving_s / seconds,
            "memory_gib": self._memory_bytes() / 2**30,
        }
        self._restart()
        return told

    def _memory_bytes(self) -> float:
        """Most that this rank has held so far."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
