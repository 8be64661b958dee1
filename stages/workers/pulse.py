"""The pulse of a training worker: where each rank is, about once a second, and what the driver wants.

A pulse beats in a thread of its own: a rank that waits for data, or for the others inside a collective call, is heard
all the same, and the training thread asks nobody anything. A rank that is not heard is stopped (SIGSTOP), swapped out,
or holds the interpreter in native code.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.workers.gauges import Gauges

PULSE_S = 1.0
_HEARING_S = 10.0
"""How long a beat waits for its reply; the actor that hears it may be started anew meanwhile."""
_NUM_TIMED_STEPS = 64

What = Literal["starting", "loading", "computing", "exchanging", "saving"]
"""What a rank does; in "computing" and "exchanging" it may wait for the others, in the rest for nobody."""
Rows = Callable[[], Sequence[int]]
"""Gives positions in the snapshot of what a rank reads; asked by another thread than the one that trains."""


@dataclass(frozen=True)
class Beat:
    """Where a rank is."""

    rank: int
    host: str
    node: str
    """Ray's id of the machine."""
    pid: int
    step: int
    """The step that is being made, as the log counts: the first is 1."""
    what: What
    rows: tuple[int, ...]
    """Positions in the snapshot of what it reads, where it loads."""
    since_s: float
    """Seconds since it began this."""
    num_steps: int
    """Steps that this process has finished."""
    step_s: float
    """Median seconds of its last steps; 0 before the first."""
    leaving: bool
    """Whether its process got SIGTERM."""


@dataclass(frozen=True)
class Heard:
    """A beat, and how long ago it was heard."""

    beat: Beat
    ago_s: float


class Pulse:
    """Tells the sink where this rank is, and keeps what it answers. A context manager: inside, it beats."""

    def __init__(self, sink: Any, rank: int, every_s: float = PULSE_S) -> None:
        self._sink, self._rank, self._every_s = sink, rank, every_s
        self._now: tuple[int, What, Rows, float] = (0, "starting", list, time.monotonic())
        self._first: int | None = None
        self._begun_at = 0.0
        self._steps_s: deque[float] = deque(maxlen=_NUM_TIMED_STEPS)
        self._stop = False
        self._closed = threading.Event()

    def at(self, step: int, what: What, rows: Rows = list) -> None:
        """From now on this rank does this; where it loads, `rows` says what it is going to read, and is asked only by
        the thread that beats. Costs a microsecond."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begun_at = step, now
        elif step > self._now[0]:
            self._steps_s.append(now - self._begun_at)
            self._begun_at = now
        self._now = step, what, rows, now

    @property
    def step(self) -> int:
        """The step that is being made."""
        return self._now[0]

    def wish(self) -> float:
        """1 where this rank knows that the training is to stop, else 0; summed over ranks, all leave after one step."""
        return float(self._stop or _told_to_leave.is_set())

    def __enter__(self) -> Pulse:
        _beating.append(self)
        threading.Thread(target=self._beat_on, name="plait-pulse", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        _beating.remove(self)
        if _told_to_leave.is_set():
            self._beat()  # why this rank leaves must have been heard before it has left

    def _beat_on(self) -> None:
        self._beat()
        while not self._closed.wait(self._every_s):
            self._beat()

    def _beat(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            order: Any = ray.get(self._sink.pulse.remote(self._seen()), timeout=_HEARING_S)
        except RayError:
            return  # the driver counts how long nothing was heard
        self._stop |= order == "stop"
        if order == "end":
            os.kill(os.getpid(), signal.SIGKILL)

    def _seen(self) -> Beat:
        import ray

        step, what, rows, since = self._now
        timed = list(self._steps_s)
        return Beat(
            rank=self._rank,
            host=socket.gethostname(),
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            step=step,
            what=what,
            rows=tuple(rows()),
            since_s=time.monotonic() - since,
            num_steps=step - (step if self._first is None else self._first),
            step_s=statistics.median(timed) if timed else 0.0,
            leaving=_told_to_leave.is_set(),
        )


_beating: list[Pulse] = []
_told_to_leave = threading.Event()


def leave_on_sigterm() -> None:
    """From now on SIGTERM asks this process' training to stop after its step; again, or where none is, it ends it.

    Call it in the main thread, after Ray has set its own handler, which ends the process.
    """
    before: Any = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        if _told_to_leave.is_set() or not _beating:
            before(number, frame)
        _told_to_leave.set()

    signal.signal(signal.SIGTERM, handle)


class Sink:
    """A Ray actor between the workers and the driver: what was measured, where the ranks are, what they are to do."""

    def __init__(self, stage: str, run: str) -> None:
        self._gauges = Gauges(stage, run)
        self._held: list[tuple[int, dict[str, float]]] = []
        self._pictures: dict[str, bytes] = {}
        self._notes: list[str] = []
        self._stopping = False
        self._ended: set[tuple[str, int]] = set()
        self._fault: str | None = None
        self._beats: dict[int, tuple[Beat, float]] = {}

    def pulse(self, beat: Beat) -> Literal["on", "stop", "end"]:
        """Keep where a rank is; what it is to do."""
        if (beat.host, beat.pid) in self._ended:
            return "end"
        self._beats[beat.rank] = beat, time.monotonic()
        return "stop" if self._stopping else "on"

    def beats(self) -> list[Heard]:
        """The last beat of every rank, in their order."""
        now = time.monotonic()
        return [Heard(beat, now - at) for _, (beat, at) in sorted(self._beats.items())]

    def end(self, processes: Sequence[tuple[str, int]]) -> None:
        """These processes (host and number) are to end at once; others that take their ranks are not."""
        self._ended |= set(processes)
        self._beats = {rank: kept for rank, kept in self._beats.items() if (kept[0].host, kept[0].pid) not in self._ended}  # fmt: skip  # noqa: E501

    def stop(self) -> None:
        """From now on the workers are to stop after the step that they make."""
        self._stopping = True

    def blame(self, sentence: str) -> None:
        """Why the workers left before the last step."""
        self._fault = self._fault or sentence

    def fault(self) -> str | None:
        """What was blamed, if anything."""
        return self._fault

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of a step, and show them as Ray metrics."""
        self._gauges.set({"step": step} | metrics)
        self._held.append((step, metrics))

    def show(self, name: str, data: bytes) -> None:
        """Keep the newest picture, or other file, of a name."""
        self._pictures[name] = data

    def note(self, sentence: str) -> None:
        """Keep a sentence for the run's log."""
        self._notes.append(sentence)

    def drain(self) -> tuple[list[tuple[int, dict[str, float]]], dict[str, bytes], list[str]]:
        """Hand out what was measured and said, and forget it. The driver asks twice a second."""
        self._gauges.again()
        told = self._held, self._pictures, self._notes
        self._held, self._pictures, self._notes = [], {}, []
        return told
