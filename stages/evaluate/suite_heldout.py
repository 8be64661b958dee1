"""Losses of held-out documents as a suite: the likelihoods are its verdicts (stages/evaluate/likelihoods.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

SUITE = "heldout"


@dataclass(frozen=True, kw_only=True)
class HeldoutLoss(Suite):
    """Nats per token over all tokens of a modality; it asks nothing and draws nothing.

    heldout/text      texts, and captions unaided where the recipe learns them
    heldout/caption   captions after their picture
    heldout/vision    codes after their caption
    heldout/noise     of latents: mean squared error of their noise
    """

    name: ClassVar[str] = SUITE
    evidence: ClassVar[Evidence] = "words"
    main: ClassVar[str] = "vision"
    higher_is_better: ClassVar[bool] = False

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """None."""
        return iter(())

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Nothing is judged but likelihoods."""
        raise NotImplementedError

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Sum of nats over the number of tokens, by modality."""
        nats: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for one in judged:
            count = one.verdict.parts["tokens"]
            nats[one.task] = nats.get(one.task, 0.0) + one.verdict.score * count
            tokens[one.task] = tokens.get(one.task, 0) + count
        return {task: nats[task] / tokens[task] for task in nats}
