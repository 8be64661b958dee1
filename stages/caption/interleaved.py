"""Pictures and words in turn: frames of a clip with what happens between them, and pairs of an edit with the edit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import media
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero
from stages.caption.asking import Asking, Captioner, Shown

if TYPE_CHECKING:
    import numpy as np

    from stages.base import Kit

_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class Interleaved(Asking, RowStage):
    """Frames of each clip, spread evenly, and between each two a text of what happens (NextFlow's interleaved data).

    frames   JPEG, `num_frames` of them;  times_s: when, in seconds from the start of the clip
    texts    one fewer than frames: the i-th tells what becomes of frame i in frame i + 1

    Images, and clips with fewer frames than `num_frames`, give nothing.
    """

    writes: ClassVar[str] = "interleaved"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "fps", "num_frames", "held_out")),
    )
    content: ClassVar[tuple[str, ...] | None] = ("texts",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("frames", pa.list_(pa.large_binary())),
            ("times_s", pa.list_(pa.float64())),
            ("texts", pa.list_(pa.string())),
            ("captioner", pa.string()),
            ("held_out", pa.bool_()),
        ]
    )

    prompt: str = "transition"
    num_frames: int = 4
    frame_short_side: int = 512
    """Frames are kept at this short side (pixels), never enlarged."""

    def __post_init__(self) -> None:
        above_zero(self, "frame_short_side", "max_tokens")
        if self.num_frames < 2:
            raise UserError(f"interleaved.num_frames is {self.num_frames}: give 2 or more")

    def setup(self, kit: Kit) -> Any:
        """The captioner."""
        return self.asked(changes=True)

    def process(self, rows: Sequence[Row], tools: Captioner) -> Sequence[Outcome]:
        """All transitions of all clips are asked about at once."""
        taken = [self._frames(row) for row in rows]
        shown: list[Shown | BadRow] = []
        for frames in taken:
            if not isinstance(frames, BadRow):
                small = [_shrunk(frame, tools.short_side) for frame in frames]
                shown += [_pair(small[at], small[at + 1]) for at in range(len(small) - 1)]
        answers = iter(tools.captions(shown))
        return [self._row(row, frames, answers) for row, frames in zip(rows, taken, strict=True)]

    def _frames(self, row: Row) -> list[np.ndarray] | BadRow:
        if row["source_kind"] != "video" or row["num_frames"] < self.num_frames:
            return []
        try:
            found = media.evenly(row["media"], "video", row["num_frames"], self.num_frames, self.frame_short_side)
        except BadRow as bad:
            return bad
        return found if len(found) == self.num_frames else BadRow("Not all of the clip's frames can be decoded.")

    def _row(self, row: Row, frames: list[np.ndarray] | BadRow, answers: Iterator[str | BadRow]) -> Outcome:
        if isinstance(frames, BadRow) or not frames:
            return frames if isinstance(frames, BadRow) else []
        texts = [next(answers) for _ in range(len(frames) - 1)]
        bad = next((text for text in texts if isinstance(text, BadRow)), None)
        if bad is not None:
            return bad
        places = [int((part + 0.5) * row["num_frames"] / len(frames)) for part in range(len(frames))]
        return [
            {
                "frames": [_jpeg(frame) for frame in frames],
                "times_s": [place / row["fps"] for place in places],
                "texts": texts,
                "captioner": self.model_name(),
                "held_out": row["held_out"],
            }
        ]


def _pair(before: np.ndarray, after: np.ndarray) -> Shown:
    return Shown([before, after], lambda: before)


def _shrunk(picture: np.ndarray, short_side: int) -> np.ndarray:
    import cv2

    width, height = media.fitted(picture.shape[1], picture.shape[0], short_side)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return buffer.getvalue()
