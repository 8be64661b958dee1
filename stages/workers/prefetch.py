"""Steps that are made ready while the one before them is learnt."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`load(first)` .. `load(end - 1)`, in order, made by one background thread, up to `ahead` of them in advance.

    An iterator and a context manager. What `load` raises is raised where its step is asked for. Leaving (or `close`)
    drops what is ready and lets the thread end after the step it is at. One step is loaded at a time, in order, so
    that the data is what a plain loop over the steps would give.
    """

    stalled_s: float
    """Seconds that the caller has waited; whoever reads it may set it back to 0."""

    def __init__(self, load: Callable[[int], T], first: int, end: int, ahead: int = 2) -> None:
        self._load, self._next, self._end, self._ahead = load, first, end, max(1, ahead)
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ready: deque[Future[T]] = deque()
        self.stalled_s = 0.0
        self._fill()

    def _fill(self) -> None:
        while self._next < self._end and len(self._ready) < self._ahead:
            self._ready.append(self._thread.submit(self._load, self._next))
            self._next += 1

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        """The next step's."""
        if not self._ready:
            raise StopIteration
        asked = time.perf_counter()
        try:
            made = self._ready.popleft().result()
        finally:
            self.stalled_s += time.perf_counter() - asked
        self._fill()
        return made

    def close(self) -> None:
        """No step is begun any more; returns when the thread has ended."""
        self._next = self._end
        self._ready.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
