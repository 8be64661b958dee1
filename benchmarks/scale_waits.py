"""Of benchmarks/scale_out.py: for whom a thousand ranks wait, however even their packs are. Simulated."""

from __future__ import annotations

import math
from argparse import Namespace

import numpy as np

from benchmarks.measure import table


def stragglers(given: Namespace) -> None:
    """What independent noise of each rank's step time leaves of the balance."""
    rng = np.random.default_rng(0)
    rows = [
        [f"{c:.0%}", *(f"{rng.normal(1, c, (2000, n)).max(1).mean():.3f}" for n in (8, given.groups, given.ranks))]
        for c in given.noise
    ]
    head = ["deviation", "8", f"{given.groups}", f"{given.ranks}"]
    table("   The slowest rank over the mean, by the deviation of a rank's step time", head, rows)


def stalls(given: Namespace, step_s: float, ahead: int, load_s: float, requests: float) -> tuple[float, float]:
    """Share of steps in which some rank waits for data, and of the time lost, with workers/prefetch.py."""
    rng, end = np.random.default_rng(0), 0.0
    ready = [np.zeros(given.ranks)]
    submitted = [np.zeros(given.ranks) for _ in range(ahead)]
    late = lost = 0.0
    for step in range(given.latency_steps):
        drawn = rng.random(given.ranks) ** (1 / max(1.0, requests))  # the slowest of those that go out together
        known = [0.01, *given.latency]
        decades = np.interp(-np.log10(1 - drawn), [0, math.log10(2), 2, 3, 4, 7], np.log([*known, known[-1]]))
        ready.append(np.maximum(ready[-1], submitted[step]) + np.exp(decades) + load_s)
        start = np.maximum(end, ready[-1])
        submitted.append(start)
        if step > ahead:
            wait = float(start.max() - end)
            late, lost = late + (wait > 0.01 * step_s), lost + wait
        end = float(start.max()) + step_s
    return late / given.latency_steps, lost / end


def prefetch(given: Namespace, step_s: float, load_s: float, requests: float) -> None:
    """How many steps in advance are enough."""
    rows = []
    for a_step_s in (step_s, 5.0, 1.0):
        found = [stalls(given, a_step_s, ahead, load_s, requests) for ahead in given.ahead]
        rows.append([f"{a_step_s:.1f} s", *(f"{late:.1%} ({lost:.2%})" for late, lost in found)])
    p = ", ".join(f"{x:g}" for x in given.latency)
    table(f"   Steps in which a rank waits (time lost); a read: p50, p99, p99.9, p99.99 = {p} s",
          ["a step", *(f"ahead={n}" for n in given.ahead)], rows)  # fmt: skip
