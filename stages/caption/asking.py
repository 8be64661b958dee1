"""What all captioners share: the question, what they are shown, and the settings that pick one by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from infra.types import UserError
from stages import reading, weights
from stages.base import BadRow, Stage

if TYPE_CHECKING:
    import numpy as np

_PROMPTS = Path(__file__).with_name("prompts")
_ONLY_MODELS = ("model", "prompt", "max_tokens", "temperature")


@dataclass(frozen=True)
class Question:
    """What is asked of a model, the same for every clip."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float


@dataclass(frozen=True)
class Shown:
    """What a captioner sees of one clip: pictures in order of time, uint8 RGB [H, W, 3]."""

    pictures: Sequence[np.ndarray]
    middle: Callable[[], np.ndarray]
    """The picture in the middle, large enough to read text in."""


class Captioner(Protocol):
    """One way to describe clips, set up once per worker."""

    short_side: int
    """Pictures are shown at this short side (pixels), never enlarged."""

    def captions(self, shown: Sequence[Shown | BadRow]) -> list[str | BadRow]:
        """One text, or the reason why there is none, per clip in order; what is bad already is passed on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asking(Stage):
    """Settings of a stage that asks a captioner.

    captioner "pixels"        says what can be measured in the pixels; no weights but those of the text reader's wheel;
                              `model`, `prompt`, `max_tokens` and `temperature` do not matter to it and are in no key
    captioner "openai"        asks `model` behind OPENAI_BASE_URL with `prompt`, the name of a file in
                              stages/caption/prompts
    captioner "transformers"  the same of a vision language model of the Qwen2.5-VL class in this worker; `model` is a
                              folder (in the key by its content) or an id of the hub
    """

    captioner: Literal["pixels", "openai", "transformers"] = "pixels"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    prompt: str = "describe"
    max_tokens: int = 160
    temperature: float = 0.0

    def settings(self) -> dict[str, Any]:
        """The fields that matter to the captioner, and the digest of the prompt's text."""
        given = super().settings()
        if self.captioner == "pixels":
            given = {name: value for name, value in given.items() if name not in _ONLY_MODELS}
            return given | {"reading": reading.REVISION}
        return given | {"prompt_digest": self.prompt_digest(), "model": self.model_name()}

    def model_name(self) -> str:
        """What the model is called, wherever it lies; "pixels" for the captioner without one."""
        if self.captioner == "transformers":
            return weights.named(self.model)
        return "pixels" if self.captioner == "pixels" else self.model

    def prompt_text(self) -> str:
        """The prompt's text; its file's name is the setting."""
        path = _PROMPTS / f"{self.prompt}.txt"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in _PROMPTS.glob("*.txt")))
            raise UserError(f"there is no prompt {self.prompt!r}: choose one of {known}, or add {path.name}.")
        return path.read_text(encoding="utf-8").strip()

    def prompt_digest(self) -> str:
        """SHA-256 of the prompt's text, 16 hex digits; empty for the captioner that has none."""
        return "" if self.captioner == "pixels" else hashlib.sha256(self.prompt_text().encode()).hexdigest()[:16]

    def question(self) -> Question:
        """The question to a model."""
        return Question(self.model, self.prompt_text(), self.max_tokens, self.temperature)

    def asked(self, *, changes: bool = False) -> Captioner:
        """The captioner, ready; `changes` where it is to tell what becomes of the first picture in the last."""
        if self.captioner == "openai":
            from stages.caption import vlm_endpoint

            return vlm_endpoint.Endpoint(vlm_endpoint.connected(), self.question())
        if self.captioner == "transformers":
            from stages.caption import vlm_transformers

            return vlm_transformers.Local(self.question())
        from stages.caption import pixels_captioner

        return pixels_captioner.Pixels(changes)
