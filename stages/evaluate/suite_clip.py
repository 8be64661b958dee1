"""How well pictures fit their prompts, by CLIP: 100 x the cosine of picture and prompt, none below 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict


@dataclass(frozen=True, kw_only=True)
class ClipScore(Suite):
    """CLIPScore without the paper's factor 2.5 and its "A photo depicts" (Hessel et al. 2021, arXiv 2104.08718, section
    3), as torchmetrics has it and as papers report it (MSCOCO: about 31 for ViT-L/14). Which CLIP, the judge's name
    tells: scores of two CLIPs are not comparable."""

    name: ClassVar[str] = "clip_score"
    evidence: ClassVar[Evidence] = "features"
    main: ClassVar[str] = "clip_score"

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """A prompt a line."""
        for line in (prompts or b"").decode().splitlines():
            if line.strip():
                yield Question(prompt=line.strip(), task="pictures")

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Of unit embeddings of the picture and of the prompt."""
        return Verdict(score=max(0.0, 100.0 * float(evidence["image"] @ evidence["text"])))

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """The mean."""
        return {self.main: float(np.mean([one.verdict.score for one in judged]))} if judged else {}
