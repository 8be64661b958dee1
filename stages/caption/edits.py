"""Pairs of pictures that differ in a part, with a text of the difference: data to learn editing from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import alike, media
from stages.base import BadRow, Edge, Job, JobStage, Row
from stages.caption.asking import Asking, Captioner, Shown

if TYPE_CHECKING:
    import numpy as np

_SIDE = 96
_CHANGED = 32
"""A pixel has changed where a channel differs by more levels (of 255), after shrinking to 96 x 96: compression and
another size stay below."""
_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Edits(Asking, JobStage):
    """Images that are each other's nearest and differ in a part only: one row per pair, parents before and after.

    text      what turns the one into the other, by the captioner
    changed   share of the picture that differs, 0 to 1;  distance: bits of hash, or 1 - cosine

    Nearest by embedding where every image has one, else by hash (`max_bits` of 64). Pairs of which less than
    `min_changed` differs are copies, more than `max_changed` other pictures: both are left out. Which of the two comes
    first is decided by their keys. The captioner runs in this job, in one process.
    """

    writes: ClassVar[str] = "edits"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "held_out")),
        Edge("distinct", columns=("fingerprints", "embedding"), where="source_kind = 'image' and passes"),
    )
    content: ClassVar[tuple[str, ...] | None] = ("text",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("text", pa.string()),
            ("captioner", pa.string()),
            ("distance", pa.float64()),
            ("changed", pa.float64()),
            ("held_out", pa.bool_()),
        ]
    )

    prompt: str = "edit"
    max_bits: int = 12
    min_cosine: float = 0.85
    min_changed: float = 0.02
    max_changed: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.min_changed < self.max_changed <= 1:
            raise UserError("edits.min_changed and max_changed are 0 to 1, the first below the second: change them")

    def run(self, job: Job) -> Iterator[Row]:
        """One row per pair, in order of the first one's key."""
        places = {
            row["key"]: (at, row["held_out"])
            for at, row in enumerate(r for b in job.reader("clips").scan(["key", "held_out"]) for r in b.to_pylist())
        }
        columns = ["parents", "fingerprints", "embedding"]
        rows = [row for batch in job.reader("distinct").scan(columns) for row in batch.to_pylist()]
        looks = [
            alike.look(row["parents"][0], "image", row["fingerprints"], row["embedding"], ())
            for row in rows
            if row["parents"][0] in places
        ]
        pairs = list(alike.nearest_pairs(looks, self.max_bits, self.min_cosine))
        captioner = self.asked(changes=True) if pairs else None
        for start in range(0, len(pairs), _AT_ONCE):
            job.progress(start, len(pairs), "pairs")
            assert captioner is not None
            yield from self._described(job, captioner, pairs[start : start + _AT_ONCE], places)

    def _described(
        self, job: Job, captioner: Captioner, pairs: Sequence[tuple[Any, Any, float]], places: dict[bytes, Any]
    ) -> Iterator[Row]:
        found: list[tuple[Row, Shown]] = []
        for one, other, distance in pairs:
            told = job.reader("clips").take([places[one.key][0], places[other.key][0]], ["media", "label"]).to_pylist()
            pictures = [_picture(row["media"], captioner.short_side) for row in told]
            changed = changed_share(pictures[0], pictures[1])
            names = f"{told[0]['label']} and {told[1]['label']}"
            if not self.min_changed <= changed <= self.max_changed:
                what = "copies" if changed < self.min_changed else "other pictures"
                job.reject(one.key, names, f"the nearest two are {what}")
                continue
            row = {"distance": distance, "changed": changed, "captioner": self.model_name(), "label": names}
            held = places[one.key][1] or places[other.key][1]
            found.append((row | {"held_out": held, "parents": [one.key, other.key]}, _shown(pictures)))
        for (row, _), text in zip(found, captioner.captions([shown for _, shown in found]), strict=True):
            if isinstance(text, BadRow):
                job.reject(row["parents"][0], row["label"], str(text))
            else:
                yield row | {"text": text}


def _shown(pictures: Sequence[np.ndarray]) -> Shown:
    return Shown(pictures, lambda: pictures[0])


def _picture(payload: bytes, short_side: int) -> np.ndarray:
    return next(iter(media.sampled(payload, "image", 1.0, short_side)))[1]


def changed_share(before: np.ndarray, after: np.ndarray) -> float:
    """Share of the picture that differs, 0 to 1, after both are brought to one small size."""
    import cv2
    import numpy as np

    small = [
        cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        for picture in (before, after)
    ]
    return float((np.abs(small[0] - small[1]).max(axis=2) > _CHANGED).mean())
