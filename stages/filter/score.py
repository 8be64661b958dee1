"""From clips to their measurements, all from one decode. The verdict is the pipeline's select, not this stage's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from stages import media
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero
from stages.filter import colour, flow, quality, text_area

if TYPE_CHECKING:
    from stages.base import Kit


@dataclass(frozen=True, kw_only=True)
class Scores(RowStage):
    """Measures each clip; filters nothing.

    short_side    pixels, of the clip as stored
    duration_s    seconds; 0 for an image
    text_area     share of the picture inside text boxes, 0 to 1: mean over the frames looked at, so that one false
                  box in one frame does not condemn a clip
    flow          per cent of the short side that the mean pixel moves a second; null for images and clips of one
                  frame: unknown is not low, so a select clause must say what it does with null
    solid_colour  share of the picture near its median colour, 0 to 1: the least over the frames looked at, so that
                  a fade does not make a clip solid
    quality       technical quality, 0 to 10: median over the frames looked at
    num_frames_seen  frames looked at for text, colour and quality

    Pictures are shrunk to a short side of 256 pixels first, so scores do not depend on the resolution of the
    source; details lost by that are lost to training too.
    """

    writes: ClassVar[str] = "scores"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "fps", "num_frames", "width", "height")),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("short_side", pa.int32()),
            ("duration_s", pa.float64()),
            ("text_area", pa.float64()),
            pa.field("flow", pa.float64(), nullable=True),
            ("solid_colour", pa.float64()),
            ("quality", pa.float64()),
            ("num_frames_seen", pa.int32()),
        ]
    )

    look_fps: float = 2.0
    """Pictures a second that are looked at for text, colour and quality (Data-Juicer and Curator: 2)."""
    flow_fps: float = 8.0
    """Pictures a second between which flow is measured: one short side a second is 16 of 128 pixels."""

    def setup(self, kit: Kit) -> Any:
        """The text detector; OpenCV keeps to one thread, for workers share the machine."""
        import cv2

        cv2.setNumThreads(1)
        return text_area.detector()

    def __post_init__(self) -> None:
        above_zero(self, "look_fps", "flow_fps")

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Measure each clip."""
        return [self._scored(row, tools) for row in rows]

    def _scored(self, row: Row, detect: Any) -> Outcome:
        motion = flow.Flow()
        texts, solids, qualities = [], [], []
        due = 0.0
        try:
            for time, picture in media.sampled(row["media"], row["source_kind"], self.flow_fps, text_area.SHORT_SIDE):
                motion.add(time, picture)
                if time + 1e-6 >= due:
                    due = (int(time * self.look_fps + 1e-6) + 1) / self.look_fps
                    texts.append(text_area.text_area(detect, picture))
                    solids.append(colour.solid_colour(picture))
                    qualities.append(quality.quality(picture))
        except BadRow as bad:
            return bad
        return [
            {
                "short_side": min(row["width"], row["height"]),
                "duration_s": row["num_frames"] / row["fps"] if row["source_kind"] == "video" else 0.0,
                "text_area": sum(texts) / len(texts),
                "flow": motion.score(),
                "solid_colour": min(solids),
                "quality": sorted(qualities)[len(qualities) // 2],
                "num_frames_seen": len(texts),
            }
        ]
