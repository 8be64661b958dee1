"""The samples of a step: a pure function of seed and step, decoded when they are wanted. Not a stage.

Legend: N samples, T frames of each, H and W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow, UserError
from stages import frames
from stages.base import Reader, Row

if TYPE_CHECKING:
    from stages.tokenizer.tokenizer import Tokenizer

_KEPT_BYTES = 2**30
"""Decoded frames that a worker keeps: a speed-up that changes nothing."""
_READ_CLIPS = 64
_MAX_DRAWS = 1000
_NAMED_CLIPS = 3
_COLUMNS = ["key", "label", "media", "source_kind", "num_frames", "fps"]


@dataclass(frozen=True)
class Batch:
    """What a rank learns from at a step."""

    pixels: NDArray[np.uint8]
    """(N, T, H, W, 3)."""
    rows: list[int]
    """Position in the snapshot of each sample's clip."""


class Samples:
    """Clips of a pinned snapshot as frames, by step or by name."""

    def __init__(self, clips: Reader, stage: Tokenizer, stride: tuple[int, int]) -> None:
        if stage.frames_per_clip % stage.frames_per_sample or stage.frames_per_sample % stride[0]:
            raise UserError(
                f"tokenizer.frames_per_sample is {stage.frames_per_sample}: give a multiple of the {stride[0]} frames"
                f" that a code stands for, of which tokenizer.frames_per_clip ({stage.frames_per_clip}) is a multiple"
            )
        self._clips, self._stage, self._stride = clips, stage, stride
        found: list[tuple[bytes, int, bool]] = []
        for batch in clips.scan(["key", "held_out"], batch_rows=65_536):
            keys, held = batch.column(0).to_pylist(), batch.column(1).to_pylist()
            found += zip(keys, range(len(found), len(found) + len(keys)), held, strict=True)
        found.sort()
        self.seen = [row for _, row, held in found if not held]
        """Rows to train on, in order of key, so that the order in storage changes nothing."""
        self.unseen = [row for _, row, held in found if held]
        self.rejected: dict[str, tuple[str, str]] = {}
        """Label and reason by key (hex) of clips that did not decode."""
        self._kept: OrderedDict[int, NDArray[np.uint8] | None] = OrderedDict()
        self._kept_bytes = 0
        self._lock = Lock()  # steps are read in advance while held-out clips are measured

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """The samples of a rank at a step."""
        return self._batch(step, range(rank, self._stage.batch, world))

    def drawn(self, step: int, rank: int, world: int) -> list[int]:
        """Positions in the snapshot of the clips that a rank reads first at a step."""
        places = range(rank, self._stage.batch, world)
        draws = (np.random.default_rng([self._stage.seed, step, place]) for place in places)
        return sorted({self.seen[int(draw.integers(2**62, size=2)[0]) % len(self.seen)] for draw in draws})

    def described(self, rows: Sequence[int]) -> str:
        """Clips for people."""
        return described(self._clips, rows)

    def measured(self) -> Iterator[NDArray[np.uint8]]:
        """Frames (T, H, W, 3) of held-out clips (of training clips where there are none), at most `max_measured`."""
        rows = (self.unseen or self.seen)[: self._stage.max_measured]
        for start in range(0, len(rows), _READ_CLIPS):
            part = rows[start : start + _READ_CLIPS]
            found = self._pictures(part)
            yield from (pictures for row in part if (pictures := found[row]) is not None)

    def _batch(self, step: int, places: Sequence[int]) -> Batch:
        """Samples by place in the step. Where a clip does not decode, its place draws another one."""
        draws = [np.random.default_rng([self._stage.seed, step, place]) for place in places]
        samples: dict[int, NDArray[np.uint8]] = {}
        rows: dict[int, int] = {}
        for _ in range(_MAX_DRAWS):
            drawn: dict[int, tuple[int, int]] = {}
            for place in range(len(places)):
                if place not in samples:
                    clip, part = (int(n) for n in draws[place].integers(2**62, size=2))
                    drawn[place] = self.seen[clip % len(self.seen)], part
            pictures = self._pictures([row for row, _ in drawn.values()])
            for place, (row, part) in drawn.items():
                if (found := pictures[row]) is not None:
                    samples[place], rows[place] = self._part(found, part), row
            if len(samples) == len(places):
                order = range(len(places))
                return Batch(np.stack([samples[place] for place in order]), [rows[place] for place in order])
        raise UserError("no clip to train the tokenizer on decodes: `plait quarantine clips` has the reasons")

    def _part(self, pictures: NDArray[np.uint8], part: int) -> NDArray[np.uint8]:
        """One sample of a clip's frames; a still is repeated."""
        size = self._stage.frames_per_sample
        if len(pictures) == 1:
            return pictures.repeat(size, axis=0)
        first = part % (len(pictures) // size) * size
        return pictures[first : first + size]

    def _pictures(self, rows: Sequence[int]) -> dict[int, NDArray[np.uint8] | None]:
        """Frames of clips by row, None where one does not decode. The latest ones are kept, the others read at once."""
        with self._lock:
            found = {row: self._kept[row] for row in rows if row in self._kept}
            for row in found:
                self._kept.move_to_end(row)
        missing = sorted(set(rows) - set(found))
        clips = self._clips.take(missing, _COLUMNS).to_pylist() if missing else []
        for row, clip in zip(missing, clips, strict=True):
            found[row] = self._decoded(clip)
            self._keep(row, found[row])
        return found

    def _decoded(self, clip: Row) -> NDArray[np.uint8] | None:
        stride = self._stage.frames_per_sample, self._stride[1]
        kind, view = clip["source_kind"], self._stage.view()
        try:
            return frames.prepare(clip["media"], kind, clip["num_frames"], clip["fps"], view, stride).pictures
        except BadRow as bad:
            self.rejected[clip["key"].hex()] = (clip["label"], str(bad))
            return None

    def _keep(self, row: int, pictures: NDArray[np.uint8] | None) -> None:
        with self._lock:
            self._kept_bytes += 0 if row in self._kept or pictures is None else pictures.nbytes
            self._kept[row] = pictures
            while self._kept_bytes > _KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= 0 if oldest is None else oldest.nbytes


def described(clips: Reader, rows: Sequence[int]) -> str:
    """The clips at these positions of the snapshot, for people; the first three."""
    found = clips.take(rows[:_NAMED_CLIPS], ["key", "label"]).to_pylist()
    more = f" and {len(rows) - _NAMED_CLIPS} more" if len(rows) > _NAMED_CLIPS else ""
    told = (f"{one['label']} ({one['key'].hex()[:12]}: plait why --row {one['key'].hex()[:12]})" for one in found)
    return ", ".join(told) + more
