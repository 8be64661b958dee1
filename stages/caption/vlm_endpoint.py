"""Captions from any OpenAI-compatible endpoint (vLLM and others) that takes pictures.

Where it is and how to get in come from the environment, as the openai client reads it: OPENAI_BASE_URL and
OPENAI_API_KEY (vLLM without a key: any word). Neither is a setting, so moving the server stales nothing.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from infra.types import BadRow, TransientError
from stages.caption.asking import Question, Shown

if TYPE_CHECKING:
    import numpy as np

SHORT_SIDE = 448
"""Pictures are sent at this short side (pixels), never enlarged: what common vision encoders look at."""
_JPEG_QUALITY = 90
_AT_ONCE = 16
"""Requests under way at once per worker: a vLLM server batches them."""
_TIMEOUT_S = 120.0
_RETRIES = 4
_ROW_STATUS = (400, 413, 422)
"""Answers that blame the request: this clip, not the endpoint."""


def connected(retries: int = _RETRIES, timeout_s: float = _TIMEOUT_S) -> Any:
    """A client, once per worker; it retries connection errors, 408, 409, 429 and 5xx itself, with backoff."""
    import openai

    if not os.environ.get("OPENAI_API_KEY"):
        raise TransientError("OPENAI_API_KEY is not set: export it (any word for a vLLM server without keys).")
    return openai.OpenAI(max_retries=retries, timeout=timeout_s)


class Endpoint:
    """A model behind a client; the requests of a batch run at once."""

    short_side = SHORT_SIDE

    def __init__(self, client: Any, question: Question) -> None:
        self._client, self._question = client, question

    def captions(self, shown: Sequence[Shown | BadRow]) -> list[str | BadRow]:
        """One caption, or the reason why there is none, per clip in order.

        TransientError where the endpoint is at fault (after the client's retries): the rows are not.
        """

        def asked(one: Shown | BadRow) -> str | BadRow:
            return one if isinstance(one, BadRow) else _asked(self._client, self._question, one.pictures)

        with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(shown)))) as pool:
            return list(pool.map(asked, shown))


def _asked(client: Any, question: Question, pictures: Sequence[np.ndarray]) -> str | BadRow:
    import openai

    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _jpeg(one)}} for one in pictures]
    content.append({"type": "text", "text": question.prompt})
    try:
        answer = client.chat.completions.create(
            model=question.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=question.max_tokens,
            temperature=question.temperature,
        )
    except openai.APIConnectionError as error:  # a timeout is one of these
        raise TransientError(f"The captioning endpoint cannot be reached ({type(error).__name__}).") from error
    except openai.APIStatusError as error:
        if error.status_code in _ROW_STATUS:
            return BadRow(f"The endpoint refused this clip ({error.status_code}): {_short(error.message)}")
        # 401, 403 and 404 are a wrong key or model name: not the row's fault, and no reason to quarantine them all.
        raise TransientError(
            f"The captioning endpoint answered {error.status_code}: {_short(error.message)}"
        ) from error
    return _text(answer)


def _text(answer: Any) -> str | BadRow:
    if not answer.choices:
        return BadRow("The endpoint gave no answer for this clip.")
    choice = answer.choices[0]
    if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter":
        return BadRow("The model refused to describe this clip.")
    text = " ".join((choice.message.content or "").split())
    return text or BadRow("The model gave an empty caption for this clip.")


def _short(message: str) -> str:
    return " ".join(message.split())[:200]


def _jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
