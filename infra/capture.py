"""What Python code prints and logs while a context is open: the last lines, bounded, and still where it went before.

Only what goes through `sys.stdout`, `sys.stderr` and `logging` is seen, not what C libraries write by themselves; of
logging, what its levels let through (WARNING and above unless a stage sets another one).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO

from infra.types import now_utc, without_secrets

MAX_LINES = 200
MAX_BYTES = 32 << 10
MAX_LINE_CHARS = 4000


class Said:
    """The last lines that were said, and how many came before them."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, str]] = deque()
        self._num_bytes = 0
        self._left_out = 0
        self._open: dict[str, str] = {}
        self._lock = threading.Lock()

    def write(self, level: str, text: str) -> None:
        """Take text as it comes; a line counts when it is ended. A progress bar's rewritten lines are one line."""
        with self._lock:
            *whole, rest = (self._open.get(level, "") + text).split("\n")
            self._open[level] = rest.rpartition("\r")[2][-MAX_LINE_CHARS:]
            for line in whole:
                self._add(level, line)

    def line(self, level: str, text: str) -> None:
        """Take one whole message."""
        with self._lock:
            self._add(level, text)

    def _add(self, level: str, text: str) -> None:
        text = without_secrets(text.rstrip().rpartition("\r")[2])[:MAX_LINE_CHARS]
        if not text:
            return
        self._lines.append({"at": now_utc(), "level": level, "text": text})
        self._num_bytes += len(text.encode())
        while len(self._lines) > MAX_LINES or self._num_bytes > MAX_BYTES:
            self._num_bytes -= len(self._lines.popleft()["text"].encode())
            self._left_out += 1

    def report(self) -> dict[str, Any]:
        """{"worker": host and process, "lines": [{"at", "level", "text"}], "left_out": how many came before}."""
        with self._lock:
            for level, text in self._open.items():
                self._add(level, text)
            self._open = {}
            worker = f"{socket.gethostname()}:{os.getpid()}"
            return {"worker": worker, "lines": list(self._lines), "left_out": self._left_out}


class _Tee:
    """A stream that also tells; everything else is the stream's own."""

    def __init__(self, stream: TextIO, said: Said, level: str) -> None:
        self._stream = stream
        self._said = said
        self._level = level

    def write(self, text: str) -> int:
        self._said.write(self._level, text)
        self._stream.write(without_secrets(text))  # a terminal is somebody's log as well
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Listener(logging.Handler):
    def __init__(self, said: Said) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.line(record.levelname.lower(), f"{record.name}: {self.format(record)}")


@contextmanager
def capture() -> Generator[Said]:
    """Listen to this process while the context is open."""
    said = Said()
    listener = _Listener(said)
    out, err = sys.stdout, sys.stderr
    tees: Any = (_Tee(out, said, "out"), _Tee(err, said, "err"))
    sys.stdout, sys.stderr = tees
    logging.getLogger().addHandler(listener)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(listener)
        for name, tee, before in (("stdout", tees[0], out), ("stderr", tees[1], err)):
            if getattr(sys, name) is tee:  # somebody may have put a stream of his own there meanwhile
                setattr(sys, name, before)
