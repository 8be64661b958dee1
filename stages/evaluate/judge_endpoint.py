"""Answers about pictures from any OpenAI-compatible endpoint, for suites that ask questions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from infra.types import BadRow
from stages.endpoint import Request, Said, asked_all
from stages.evaluate.judge import Answer, said_yes
from stages.evaluate.suite import Evidence

PROMPT = "{question} Answer with yes or no only."
"""Of questions whose answer is yes or no; T2I-CompBench's, which are noun phrases, want a prompt of their own."""
_MAX_TOKENS = 8


class Asked:
    """Each question of an answer is a request of its own, greedy; `yes` is there where the endpoint tells likelihoods.

    `yes` is p(yes) / (p(yes) + p(no)) over the likeliest first tokens. One question that is refused spoils the answer:
    a graph of questions with holes has no score.
    """

    gives: Evidence = "answers"

    def __init__(self, client: Any, model: str, *, prompt: str = PROMPT, probabilities: bool = False) -> None:
        self._client, self._model, self._prompt, self._probabilities = client, model, prompt, probabilities
        meant = hashlib.sha256(f"{prompt} {_MAX_TOKENS} {probabilities}".encode()).hexdigest()[:8]
        self.name = f"endpoint-{model}-{meant}"

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """All questions of all answers at once; TransientError where the endpoint is away."""
        asked = [self._requests(answer) for answer in answers]
        said = iter(asked_all(self._client, [one for some in asked if not isinstance(some, BadRow) for one in some]))
        return [some if isinstance(some, BadRow) else _evidence([next(said) for _ in some]) for some in asked]

    def _requests(self, answer: Answer) -> list[Request] | BadRow:
        try:
            picture = answer.picture()
        except BadRow as bad:
            return bad
        return [
            Request(
                model=self._model,
                prompt=self._prompt.replace("{question}", question),
                max_tokens=_MAX_TOKENS,
                temperature=0.0,
                pictures=(picture,),
                probabilities=self._probabilities,
            )
            for question in answer.question.about["questions"]
        ]


def _evidence(said: Sequence[Said | BadRow]) -> Mapping[str, Any] | BadRow:
    good: list[Said] = []
    for one in said:
        if isinstance(one, BadRow):
            return one
        good.append(one)
    likely = [_yes(one) for one in good]
    found: dict[str, Any] = {"answers": [one.text for one in good]}
    return found if not likely or None in likely else found | {"yes": likely}


def _yes(said: Said) -> float | None:
    """How likely a yes is against a no; None where neither is among the first tokens."""
    shares = [0.0, 0.0]
    for token, log_p in said.first.items():
        if said_yes(token):
            shares[0] += math.exp(log_p)
        elif token.strip().rstrip(".!").lower() == "no":
            shares[1] += math.exp(log_p)
    return shares[0] / sum(shares) if sum(shares) > 0 else None
