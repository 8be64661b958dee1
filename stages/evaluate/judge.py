"""What a judge is: it looks at answers and gives the evidence that a suite's verdict rests on. Not a stage.

One file per kind: `judge_recorded` (what another run or another tool found), `judge_endpoint` (any OpenAI-compatible
model), `judge_detector` (models of transformers in folders), `judge_features` (encoders), `judge_pixels` (a detector
without weights). The name of a judge goes into the name of its scores: those of two judges are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow
from stages.evaluate.suite import Evidence, Question


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to a question, as a judge sees it."""

    question: Question
    name: str
    """Names the question, as in `Judged.question`."""
    index: int
    """Which of the answers to it."""
    frames: NDArray[np.uint8] | None = None
    """RGB (T, H, W, 3); a picture has one. None of a text."""
    fps: float | None = None
    """Frames a second, of a film."""
    text: str = ""

    def picture(self) -> NDArray[np.uint8]:
        """The picture (H, W, 3), of a film the frame in the middle; BadRow where there is none."""
        if self.frames is None or not len(self.frames):
            raise BadRow("The answer is no picture: this judge looks at pictures.")
        return self.frames[len(self.frames) // 2]


class Judge(Protocol):
    """One way to get evidence, set up once per worker."""

    name: str
    """Kind, and digests of model and prompt: what changes the evidence and nothing else."""
    gives: Evidence

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """Evidence, or the reason why there is none, per answer in order; TransientError where the world is at fault.
        What it gives of an answer does not depend on the others."""
        ...


class Itself:
    """No judge: the answer itself is the evidence, for suites that measure pixels or words."""

    def __init__(self, gives: Evidence) -> None:
        self.name = "measured"
        self.gives: Evidence = gives

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """Frames or text."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        if self.gives == "words":
            return {"text": answer.text}
        if answer.frames is None:
            return BadRow("The answer has no pixels: this suite measures them.")
        return {"frames": answer.frames} | ({"fps": answer.fps} if answer.fps else {})


def said_yes(answer: str) -> bool:
    """Whether an answer is yes, whatever its case and full stop."""
    return answer.strip().rstrip(".!").lower() == "yes"
