"""Evidence that was found before: by another run, another machine, another tool, or people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.types import BadRow, UserError
from stages.evaluate.judge import Answer
from stages.evaluate.suite import Evidence

_HOLDS: Mapping[str, tuple[str, ...]] = {"objects": ("objects", "size"), "answers": ("answers",), "words": ("text",)}
"""What a line must hold beside the answer's name, by kind of evidence."""


class Recorded:
    """Lines of JSON, each the evidence of one answer:

        {"question": "...", "index": 0, "objects": [...], "size": [w, h]}        or "answers": [...], or "text": "..."

    `question` is the question's name, or its prompt where prompts are not twice; the judge that found it may be named
    on each line as "judge", all lines the same.
    """

    def __init__(self, place: str, gives: Evidence) -> None:
        if gives not in _HOLDS:
            raise UserError(f"{gives} cannot be recorded as JSON lines: choose one of {', '.join(_HOLDS)}")
        path = Path(place).expanduser()
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise UserError(f"there is no recorded evidence at {place}: give a file of JSON lines") from error
        self.gives: Evidence = gives
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        judges: set[str] = set()
        for number, line in enumerate(raw.decode().splitlines(), 1):
            if line.strip():
                judges.add(self._read(line, f"line {number} of {path.name}"))
        if len(judges) > 1:
            raise UserError(f"{path.name} mixes the judges {', '.join(sorted(judges))}: give a file of each")
        digest = hashlib.sha256(raw).hexdigest()[:8]
        self.name = f"recorded-{next(iter(judges), '')}-{digest}".replace("--", "-")

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """What was recorded of each answer; a BadRow where nothing was."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        for name in (answer.name, answer.question.prompt):
            if (found := self._found.get((name, answer.index))) is not None:
                return found
        return BadRow(f"Nothing was recorded of answer {answer.index} to {answer.question.prompt[:60]!r}.")

    def _read(self, line: str, where: str) -> str:
        """Keeps a line; the judge that it names."""
        holds = _HOLDS[self.gives]
        how = f"give question, index and {' and '.join(holds)} as JSON"
        try:
            told = json.loads(line)
            at = str(told.pop("question")), int(told.pop("index"))
            judge = str(told.pop("judge", ""))
            missing = [name for name in holds if name not in told]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} cannot be read: {how}") from error
        if missing:
            raise UserError(f"{where} has no {missing[0]}: {how}")
        if self._found.setdefault(at, told) is not told:
            raise UserError(f"{where} tells of answer {at[1]} to {at[0][:60]!r} again: give one line each")
        return judge
