"""What a run shows while it works, kept so that whoever follows it from elsewhere sees the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

from infra.types import without_secrets

LINE = ("name", "state", "rows_out", "seconds", "empty", "filtered", "quarantined")
"""What the line of a finished stage is made of."""


class Progress(Protocol):
    """What a run shows while it works."""

    def stage(self, name: str, done: int, total: int, what: str) -> None:
        """Units done of a stage."""
        ...

    def finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has ended."""
        ...

    def note(self, sentence: str) -> None:
        """A sentence for the person."""
        ...


class Shown:
    """Shows on, and keeps what was shown as one document: {stages: {name: [done, total, what]}, said: [...]}, where
    `said` has the lines of finished stages and the notes in their order."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stages: dict[str, list[Any]] = {}
        self._said: list[dict[str, Any]] = []
        self._lock = threading.Lock()  # waves of several stages go on at the same time

    def stage(self, name: str, done: int, total: int, what: str) -> None:
        """Units done of a stage."""
        self._progress.stage(name, done, total, what)
        with self._lock:
            self._stages[name] = [done, total, what]

    def finished(self, entry: Mapping[str, Any]) -> None:
        """A stage has ended."""
        self._progress.finished(entry)
        with self._lock:
            self._stages.pop(entry["name"], None)
            self._said.append({"finished": {name: entry[name] for name in LINE}})

    def note(self, sentence: str) -> None:
        """A sentence for the person."""
        self._progress.note(sentence)
        with self._lock:
            self._said.append({"note": without_secrets(sentence)})

    def document(self) -> dict[str, Any]:
        """All of it up to now."""
        with self._lock:
            bars = {name: [done, total, without_secrets(what)] for name, (done, total, what) in self._stages.items()}
            return {"stages": bars, "said": list(self._said)}


class Mirror:
    """Shows elsewhere what `Shown` kept: each line once, bars as they stand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._num_said = 0

    def show(self, document: Mapping[str, Any]) -> None:
        """What is new in the document."""
        for said in document["said"][self._num_said :]:
            if "note" in said:
                self._progress.note(said["note"])
            else:
                self._progress.finished(said["finished"])
        self._num_said = len(document["said"])
        for name, (done, total, what) in document["stages"].items():
            self._progress.stage(name, done, total, what)
