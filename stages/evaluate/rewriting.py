"""Prompts said again at greater length by a language model, before pictures are drawn of them. Not a stage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.types import BadRow, UserError
from stages.endpoint import Request, Said, asked_all
from stages.evaluate.suite import Question

FROM = "rewritten_from"
"""Where `about` keeps the prompt of the suite,"""
BY = "rewritten_by"
"""and who rewrote it."""
PROMPT = (
    "Rewrite this prompt for a text-to-image model as one detailed sentence. Keep every object, number, colour and"
    " position that it names, and add none. Answer with the prompt alone: {prompt}"
)
REVISION = 1
"""Bumped when the same settings ask something else."""
_SLOT = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """A model behind OPENAI_BASE_URL, asked greedily.

    It is part of what is measured: Emu3 tells 0.54 on GenEval as its prompts stand and 0.66 with rewritten ones (Wang
    et al. 2024, arXiv 2409.18869), so the score names it.
    """

    model: str
    """As the endpoint calls it."""
    prompt: str = PROMPT
    """With {prompt} in it."""
    max_tokens: int = 256
    """Of a rewritten prompt; one that is longer is rejected."""

    def __post_init__(self) -> None:
        if _SLOT not in self.prompt:
            raise UserError(f"the rewriter's prompt has no place for the prompt: write {_SLOT} into it")
        if self.max_tokens < 1:
            raise UserError(f"the rewriter's max_tokens is {self.max_tokens}: give 1 or more, 256 are usual")

    @property
    def name(self) -> str:
        """Model, and a digest of all else that decides its words."""
        meant = hashlib.sha256(f"{REVISION} {self.prompt} {self.max_tokens}".encode()).hexdigest()[:8]
        return f"{self.model}-{meant}"


def rewritten(client: Any, rewriter: Rewriter, questions: Sequence[Question]) -> list[Question | BadRow]:
    """Each question with the new prompt, the suite's own beside it in `about`; or why there is none. What has no words
    stays as it is. TransientError where the endpoint is away."""
    worded = [one for one in questions if one.prompt]
    requests = [
        Request(
            model=rewriter.model,
            prompt=rewriter.prompt.replace(_SLOT, one.prompt),
            max_tokens=rewriter.max_tokens,
            temperature=0.0,
        )
        for one in worded
    ]
    said = iter(asked_all(client, requests))
    return [_again(one, next(said), rewriter) if one.prompt else one for one in questions]


def _again(question: Question, said: Said | BadRow, rewriter: Rewriter) -> Question | BadRow:
    if isinstance(said, BadRow):
        return said
    if said.is_cut:
        return BadRow(f"The rewritten prompt is longer than {rewriter.max_tokens} tokens.")
    about = {**question.about, FROM: question.prompt, BY: rewriter.name}
    return Question(prompt=said.text, task=question.task, about=about, given=question.given)


def asked_for(prompt: str, about: Mapping[str, Any]) -> str:
    """The suite's own prompt of a question, rewritten or not: what an answer is judged by."""
    return about.get(FROM, prompt)


def told(judge: str, about: Mapping[str, Any]) -> str:
    """A judge's name, and the rewriter's where there was one: scores with and without are not comparable."""
    return f"{judge}, prompts rewritten by {about[BY]}" if BY in about else judge
