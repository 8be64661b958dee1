"""VBench's subject and background consistency: how alike the frames of a film stay, by a configured encoder.

Huang et al. 2024 (arXiv 2311.17982, section 3.1); Vchitect/VBench@45e79ec1, vbench/subject_consistency.py and
background_consistency.py: DINO ViT-B/16's features, and CLIP ViT-B/32's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stages.evaluate.suite import Asks, Evidence, Judged, Question, Suite, Verdict
from stages.evaluate.suite_vbench import consistency, told_by


@dataclass(frozen=True, kw_only=True)
class SubjectConsistency(Suite):
    """By an encoder of pictures. Which one, the judge's name tells: with weights other than VBench's the score is none
    of VBench's, so "configured" is in its name and `suite_vbench.total` does not take it."""

    name: ClassVar[str] = "subject_consistency"
    asks: ClassVar[Asks] = "films"
    evidence: ClassVar[Evidence] = "features"
    main: ClassVar[str] = "subject_consistency[configured]"

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """The prompts of VBench_full_info.json that ask for this dimension."""
        for prompt, asked in told_by(prompts, self.name):
            if self.name in asked:
                yield Question(prompt=prompt, task="films")

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Of the features of its frames (T, D), 0 to 1; BadRow of a single frame."""
        return Verdict(score=consistency(np.asarray(evidence["frames"])))

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """The mean over films."""
        return {self.main: math.fsum(one.verdict.score for one in judged) / len(judged)} if judged else {}


@dataclass(frozen=True, kw_only=True)
class BackgroundConsistency(SubjectConsistency):
    """The same by a CLIP."""

    name: ClassVar[str] = "background_consistency"
    main: ClassVar[str] = "background_consistency[configured]"
