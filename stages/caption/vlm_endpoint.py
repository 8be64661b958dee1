"""Captions from any OpenAI-compatible endpoint: `stages/endpoint.py` with the question of the captioners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.types import BadRow
from stages.caption.asking import Question, Shown
from stages.endpoint import Request, asked_all, connected

__all__ = ["SHORT_SIDE", "Endpoint", "connected"]

SHORT_SIDE = 448
"""Pictures are sent at this short side (pixels), never enlarged: what common vision encoders look at."""


class Endpoint:
    """A model behind a client; the requests of a batch run at once."""

    short_side = SHORT_SIDE

    def __init__(self, client: Any, question: Question) -> None:
        self._client, self._question = client, question

    def captions(self, shown: Sequence[Shown | BadRow]) -> list[str | BadRow]:
        """One caption, or the reason why there is none, per clip in order.

        TransientError where the endpoint is at fault (after the client's retries): the rows are not.
        """
        answers = asked_all(self._client, [one if isinstance(one, BadRow) else self._request(one) for one in shown])
        return [answer if isinstance(answer, BadRow) else answer.text for answer in answers]

    def _request(self, shown: Shown) -> Request:
        asked = self._question
        return Request(
            model=asked.model,
            prompt=asked.prompt,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            pictures=shown.pictures,
        )
