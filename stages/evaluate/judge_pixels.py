"""A detector without weights as a judge: objects of the sample corpus's drawings. Not a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.types import BadRow
from stages.evaluate.detector_pixels import REVISION, detected
from stages.evaluate.judge import Answer
from stages.evaluate.suite import Evidence


class PixelDetector:
    """See `detector_pixels.detected`; of films the frame in the middle."""

    name = f"pixels@{REVISION}"
    gives: Evidence = "objects"

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """What is seen in each."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        try:
            return detected(answer.picture())
        except BadRow as bad:
            return bad
