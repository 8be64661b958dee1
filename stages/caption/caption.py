"""From clips to captions: one sentence or a few per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from stages import media, reading
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero, since
from stages.caption.asking import Asking, Captioner, Shown

if TYPE_CHECKING:
    from stages.base import Kit


@dataclass(frozen=True, kw_only=True)
class Captions(Asking, RowStage):
    """Describes each clip from a few of its frames, spread evenly over it; the captioners are told of in `Asking`.

    A row's content is its text: another answer is another caption, the same answer (from any captioner) keeps all
    that was made from it. The digest of the prompt's text is in the key, so an edited prompt recaptions. The pixel
    captioner reads text in the middle frame only.
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

    num_frames: int = 8
    """Frames looked at per clip."""
    short_clip_s: float = since(0.0)
    """Clips shorter than this (s) are looked at in `short_num_frames` frames. Emu3: 20 s, 12 frames."""
    short_num_frames: int = since(12)

    def __post_init__(self) -> None:
        above_zero(self, "num_frames", "short_num_frames", "max_tokens")

    def setup(self, kit: Kit) -> Any:
        """The captioner."""
        return self.asked()

    def process(self, rows: Sequence[Row], tools: Captioner) -> Sequence[Outcome]:
        """Describe each clip; the captioner is asked about all of them at once."""
        texts = tools.captions([self._shown(row, tools.short_side) for row in rows])
        return [self._row(row, text) for row, text in zip(rows, texts, strict=True)]

    def _count(self, row: Row) -> int:
        is_short = row["source_kind"] == "video" and row["num_frames"] < self.short_clip_s * row["fps"]
        return self.short_num_frames if is_short else self.num_frames

    def _shown(self, row: Row, short_side: int) -> Shown | BadRow:
        def frames(count: int, side: int) -> Any:
            return media.evenly(row["media"], row["source_kind"], row["num_frames"], count, side)

        try:
            return Shown(frames(self._count(row), short_side), lambda: frames(1, reading.SHORT_SIDE)[0])
        except BadRow as bad:
            return bad

    def _row(self, row: Row, text: str | BadRow) -> Outcome:
        if isinstance(text, BadRow):
            return text
        looked = 1 if row["source_kind"] == "image" else min(self._count(row), row["num_frames"])
        return [
            {
                "text": text,
                "captioner": self.model_name(),
                "prompt_digest": self.prompt_digest(),
                "num_frames": looked,
                "held_out": row["held_out"],
            }
        ]


@dataclass(frozen=True, kw_only=True)
class Readings(Captions):
    """What charts, tables and documents say: captions of the pictures that the main path leaves out for their text."""

    writes: ClassVar[str] = "readings"

    prompt: str = "read"
    max_tokens: int = 1024
