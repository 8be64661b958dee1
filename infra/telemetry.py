"""What row stages and evaluations tell while they work, as Ray metrics at the driver's node.

    plait_units_total{stage, run, outcome}     units that ended: made, empty, filtered, quarantined
    plait_rows_total{stage, run}               rows that were made of them
    plait_requests_total{stage, run, kind}     requests to the store, of tasks that ended (infra/requests.py)
    plait_backlog{stage, run}                  units that wait or are at work
    plait_actors{stage, run}                   actors that the stage has now
    plait_evaluation_waiting{training}         checkpoints that have no score yet
    plait_evaluation_lag_steps{training}       steps from the newest checkpoint with a score to the newest one

Ray writes `ray_` before each. What a training tells is in stages/workers/gauges.py, with what there is to know of how
long a value stays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

OUTCOMES = ("made", "empty", "filtered", "quarantined")
TAGS = ("stage", "run")
AGAIN_S = 5.0
"""A value that is not set again is forgotten after twenty seconds (stages/workers/gauges.py)."""


class Meter:
    """One stage of one run. Each process declares a metric once."""

    def __init__(self, stage: str, run: str, num_units: int) -> None:
        self._tags = {"stage": stage, "run": run}
        self._left = num_units

    def ended(self, result: Mapping[str, Any]) -> None:
        """A shard has ended with this result."""
        states = Counter(entry["state"] for entry in result["rest"])
        states["made"] = result["units"] - len(result["rest"])
        for outcome in OUTCOMES:
            self._add(_declared().units, states[outcome], outcome=outcome)
        self._add(_declared().rows, result["rows"])
        self._left -= result["units"]

    def working(self, num_actors: int) -> None:
        """The stage goes on with so many actors; to be said every few seconds."""
        _declared().backlog.set(self._left, self._tags)
        _declared().actors.set(num_actors, self._tags)

    def asked(self, requests: Mapping[str, int]) -> None:
        """A task has sent these requests."""
        for kind, num in requests.items():
            self._add(_declared().requests, num, kind=kind)

    def _add(self, counter: Any, num: int, **tags: str) -> None:
        if num:  # Ray refuses to add nothing
            counter.inc(num, self._tags | tags)


@contextmanager
def evaluating(lags: Mapping[str, tuple[int, int]]) -> Generator[None]:
    """While an evaluation goes on: of each training how many checkpoints wait, and by how many steps scores lag."""
    ended = threading.Event()

    def tell() -> None:
        import ray

        while not ended.wait(AGAIN_S if ray.is_initialized() else 0.5):
            if not ray.is_initialized():  # a run starts it when it first needs it
                continue
            for training, (waiting, steps) in lags.items():
                _declared().waiting.set(waiting, {"training": training})
                _declared().lag_steps.set(steps, {"training": training})

    thread = threading.Thread(target=tell, name="plait-evaluating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Metrics:
    def __init__(self) -> None:
        from ray.util import metrics

        self.units: Any = metrics.Counter("plait_units_total", "Units that ended.", (*TAGS, "outcome"))
        self.rows: Any = metrics.Counter("plait_rows_total", "Rows that were made.", TAGS)
        self.requests: Any = metrics.Counter("plait_requests_total", "Requests to the store.", (*TAGS, "kind"))
        self.backlog: Any = metrics.Gauge("plait_backlog", "Units that wait or are at work.", TAGS)
        self.actors: Any = metrics.Gauge("plait_actors", "Actors of the stage.", TAGS)
        of: tuple[str, ...] = ("training",)
        self.waiting: Any = metrics.Gauge("plait_evaluation_waiting", "Checkpoints without a score.", of)
        self.lag_steps: Any = metrics.Gauge("plait_evaluation_lag_steps", "Steps that have no score yet.", of)


@lru_cache(maxsize=1)
def _declared() -> _Metrics:
    return _Metrics()
