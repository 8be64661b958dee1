"""From clips to captions: one sentence or a few per clip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from stages import media, reading
from stages.base import BadRow, Edge, Outcome, Row, RowStage
from stages.caption import pixels, vlm_endpoint

if TYPE_CHECKING:
    import numpy as np

    from stages.base import Kit

_PROMPTS = Path(__file__).with_name("prompts")


@dataclass(frozen=True, kw_only=True)
class Captions(RowStage):
    """Describes each clip from a few of its frames, spread evenly over it.

    captioner "pixels"  says what can be measured in the pixels; needs no weights but those of the text reader's wheel,
                        and reads the middle frame only; `model`, `prompt`, `max_tokens` and `temperature` do not
                        matter to it and are left out of the key
    captioner "openai"  asks `model` behind OPENAI_BASE_URL with `prompt`, the name of a file in stages/caption/prompts

    A row's content is its text: another answer is another caption, the same answer (from any captioner) keeps all
    that was made from it. The digest of the prompt's text is in the key, so an edited prompt recaptions.
    """

    writes: ClassVar[str] = "captions"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "fps", "num_frames", "width", "height", "held_out")),
    )
    content: ClassVar[tuple[str, ...] | None] = ("text",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("text", pa.string()),
            ("captioner", pa.string()),
            ("prompt_digest", pa.string()),
            ("num_frames", pa.int32()),
            ("held_out", pa.bool_()),
        ]
    )

    captioner: Literal["pixels", "openai"] = "pixels"
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    prompt: str = "describe"
    num_frames: int = 8
    """Frames looked at per clip."""
    max_tokens: int = 160
    temperature: float = 0.0

    def settings(self) -> dict[str, Any]:
        """The fields that matter to the captioner, and the digest of the prompt's text."""
        if self.captioner == "pixels":
            return {"captioner": self.captioner, "num_frames": self.num_frames}
        return super().settings() | {"prompt_digest": self.prompt_digest()}

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

    def setup(self, kit: Kit) -> Any:
        """The client of the endpoint, or the reader of text."""
        return vlm_endpoint.connected() if self.captioner == "openai" else _Reader()

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Describe each clip; requests of a batch run at once."""
        if self.captioner == "pixels":
            return [self._row(row, self._described(row, tools)) for row in rows]
        question = vlm_endpoint.Question(self.model, self.prompt_text(), self.max_tokens, self.temperature)
        pictures = [_pictures(row, self.num_frames, vlm_endpoint.SHORT_SIDE) for row in rows]
        answers = vlm_endpoint.captions(tools, question, pictures)
        return [self._row(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _described(self, row: Row, reader: _Reader) -> str | BadRow:
        pictures = _pictures(row, self.num_frames, pixels.SHORT_SIDE)
        return pictures if isinstance(pictures, BadRow) else pixels.caption(pictures, lambda: reader.text(row))

    def _row(self, row: Row, text: str | BadRow) -> Outcome:
        if isinstance(text, BadRow):
            return text
        looked = 1 if row["source_kind"] == "image" else min(self.num_frames, row["num_frames"])
        return [
            {
                "text": text,
                "captioner": "pixels" if self.captioner == "pixels" else self.model,
                "prompt_digest": self.prompt_digest(),
                "num_frames": looked,
                "held_out": row["held_out"],
            }
        ]


class _Reader:
    """Reads the middle frame of a clip; most clips are never read, so the models are loaded for the first that is."""

    def __init__(self) -> None:
        self._ocr: Any = None

    def text(self, row: Row) -> str:
        self._ocr = self._ocr or reading.engine()
        (picture,) = media.evenly(row["media"], row["source_kind"], row["num_frames"], 1, reading.SHORT_SIDE)
        return reading.text(self._ocr, picture)


def _pictures(row: Row, count: int, short_side: int) -> list[np.ndarray] | BadRow:
    try:
        return media.evenly(row["media"], row["source_kind"], row["num_frames"], count, short_side)
    except BadRow as bad:
        return bad
