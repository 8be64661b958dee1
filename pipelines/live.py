"""What a job stage measures while it works: the ledger has it within seconds, and MLflow shows it.

    curve.N     the steps so far; overwritten, and gone when metrics.N, which has all of them, is there

A step has one value, the first that was told: a step that is made again behind a checkpoint, by new workers or by the
next driver, adds nothing. MLflow is shown only what the ledger has, with the times that stand there, so that what it
knows when the stage is done is part of what it is told then (infra/tracking.py).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from infra.ledger import Folder
from infra.types import PlaitError, StoppedError

EVERY_S = 15.0
"""Between two looks for steps that are new."""
WRITING_SHARE = 0.05
"""Of the time that may go into writing a long curve again and again."""
AGAIN_S = 300.0
"""How long an MLflow that was away is left alone."""
_ENDING_S = 10.0

Point = tuple[int, dict[str, float], int]
"""Step, metrics, and when they were told (milliseconds since 1970)."""


class Curve:
    """The steps of one materialisation. A context manager: inside, a thread writes down and shows what is new; nobody
    who tells a step waits for the store or for MLflow."""

    def __init__(
        self,
        folder: Folder,
        number: int,
        run_id: str,
        pipeline: str,
        tracker: Callable[[], Any],
        note: Callable[[str], None],
    ) -> None:
        self._folder, self._name = folder, curve_name(number)
        self._of = {"dataset": folder.dataset, "key": folder.key, "number": number, "run_id": run_id}
        self._pipeline, self._make, self._note = pipeline, tracker, note
        self._tracker: Any = None
        self._lock = threading.Lock()
        self._points: dict[int, Point] = {}
        self._num_kept = self._num_shown = 0
        self._keep_at = self._show_at = 0.0
        self._noted = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="plait-curve", daemon=True)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step was made."""
        with self._lock:
            self._points.setdefault(step, (step, {k: float(v) for k, v in metrics.items()}, int(time.time() * 1000)))

    def points(self) -> list[Point]:
        """Every step that was told, of drivers that were killed before too, as they were told."""
        with self._lock:
            return list(self._points.values())

    def __enter__(self) -> Curve:
        data = self._folder.bucket.get(f"{self._folder.path}/{self._name}")
        self._points = {step: (step, metrics, at) for step, metrics, at in json.loads(data)} if data else {}
        self._num_kept = len(self._points)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(_ENDING_S)  # one that waits for an MLflow that is away ends with the process
        if error is not None and not self._thread.is_alive():
            self._keep_at = 0.0
            self._look()
            if self._tracker is not None:
                self._tracker.stop_showing("KILLED" if isinstance(error, StoppedError) else "FAILED")

    def _work(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        points = self.points()
        if len(points) > self._num_kept and time.monotonic() >= self._keep_at:
            self._keep(points)
        if self._num_kept > self._num_shown and time.monotonic() >= self._show_at:
            self._show(points[: self._num_kept])

    def _keep(self, points: list[Point]) -> None:
        began = time.monotonic()
        try:
            self._folder.bucket.put(f"{self._folder.path}/{self._name}", json.dumps(points).encode())
        except (PlaitError, OSError):
            return  # a store that is away for a moment: the next look tries again
        self._num_kept = len(points)
        self._keep_at = time.monotonic() + (time.monotonic() - began) / WRITING_SHARE

    def _show(self, points: list[Point]) -> None:
        if self._tracker is None:
            self._tracker = self._make()
            if self._tracker is None:  # nobody wants MLflow
                self._num_shown = len(points)
                self._show_at = float("inf")
                return
        self._tracker.start(self._of["run_id"], self._pipeline)
        self._tracker.show(self._of, points)
        if self._tracker.trouble is None:
            self._num_shown = len(points)
            return
        if not self._noted:
            self._note(f"{self._tracker.trouble}; training goes on, its metrics are told when the stage is done")
        self._noted, self._tracker, self._show_at = True, None, time.monotonic() + AGAIN_S


def curve_name(number: int) -> str:
    """The object of the ledger's folder that holds the steps so far."""
    return f"curve.{number}"
