"""A model behind any OpenAI-compatible endpoint (vLLM and others) that takes pictures. Not a stage.

Where it is and how to get in come from the environment, as the openai client reads it: OPENAI_BASE_URL and
OPENAI_API_KEY (vLLM without a key: any word). Neither is a setting, so moving the server stales nothing.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.types import BadRow, TransientError

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 16
"""Requests under way at once per worker: a vLLM server batches them."""
_JPEG_QUALITY = 90
_TIMEOUT_S = 120.0
_RETRIES = 4
_ROW_STATUS = (400, 413, 422)
"""Answers that blame the request: this clip, not the endpoint."""
_ALTERNATIVES = 20
"""First tokens that are asked for with their probabilities: the most that endpoints give."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question; `pictures` (uint8 RGB [H, W, 3]) come before it."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float
    pictures: Sequence[np.ndarray] = ()
    probabilities: bool = False
    """Whether the first token's alternatives are wanted; endpoints that cannot give them refuse, or leave them out."""


@dataclass(frozen=True)
class Said:
    """What the model answered."""

    text: str
    first: Mapping[str, float] = field(default_factory=dict)
    """Log-likelihoods of the likeliest first tokens, where they were asked for and given."""
    is_cut: bool = False
    """Whether it ended at `max_tokens`."""


def connected(retries: int = _RETRIES, timeout_s: float = _TIMEOUT_S) -> Any:
    """A client, once per worker; it retries connection errors, 408, 409, 429 and 5xx itself, with backoff."""
    import openai

    if not os.environ.get("OPENAI_API_KEY"):
        raise TransientError("OPENAI_API_KEY is not set: export it (any word for a vLLM server without keys).")
    return openai.OpenAI(max_retries=retries, timeout=timeout_s)


def asked_all(client: Any, requests: Sequence[Request | BadRow]) -> list[Said | BadRow]:
    """One answer, or the reason why there is none, per request in order, all under way at once; what is bad already is
    passed on. TransientError where the endpoint is at fault (after the client's retries): the rows are not."""
    with ThreadPoolExecutor(max(1, min(AT_ONCE, len(requests)))) as pool:
        return list(pool.map(lambda one: one if isinstance(one, BadRow) else _asked(client, one), requests))


def _asked(client: Any, request: Request) -> Said | BadRow:
    import openai

    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _jpeg(picture)}} for picture in request.pictures
    ]
    content.append({"type": "text", "text": request.prompt})
    wanted = {"logprobs": True, "top_logprobs": _ALTERNATIVES} if request.probabilities else {}
    try:
        answer = client.chat.completions.create(
            model=request.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            **wanted,
        )
    except openai.APIConnectionError as error:  # a timeout is one of these
        raise TransientError(f"The endpoint cannot be reached ({type(error).__name__}).") from error
    except openai.APIStatusError as error:
        if error.status_code in _ROW_STATUS:
            return BadRow(f"The endpoint refused this request ({error.status_code}): {_short(error.message)}")
        # 401, 403 and 404 are a wrong key or model name: not the row's fault, and no reason to quarantine them all.
        raise TransientError(f"The endpoint answered {error.status_code}: {_short(error.message)}") from error
    return _said(answer)


def _said(answer: Any) -> Said | BadRow:
    if not answer.choices:
        return BadRow("The endpoint gave no answer.")
    choice = answer.choices[0]
    if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter":
        return BadRow("The model refused to answer.")
    text = " ".join((choice.message.content or "").split())
    tokens = getattr(getattr(choice, "logprobs", None), "content", None) or []
    first = {one.token: one.logprob for one in tokens[0].top_logprobs} if tokens else {}
    is_cut = choice.finish_reason == "length"
    return Said(text, first, is_cut) if text else BadRow("The model gave an empty answer.")


def _short(message: str) -> str:
    return " ".join(message.split())[:200]


def _jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
