"""From clips to their measurements, all from one decode. The verdict is the pipeline's select, not this stage's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import media, reading, weights
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero
from stages.filter import colour, fingerprint, flow, quality, text_area

if TYPE_CHECKING:
    import numpy as np

    from stages.base import Kit

SCORERS = ("technical", "laion")
_SHOTS = 3
"""Pictures that the scorers see of a clip: the middles of its thirds, of those looked at."""
_DIGITS = 4
"""Models are asked about many clips at once, and their last bits depend on how many: what is kept does not."""


@dataclass(frozen=True, kw_only=True)
class Scores(RowStage):
    """Measures each clip; filters nothing.

    source_kind   video or image, for clauses that differ
    short_side    pixels, of the clip as stored
    duration_s    seconds; 0 for an image
    text_area     share of the picture inside text boxes, 0 to 1: mean over the frames looked at, so that one false
                  box in one frame does not condemn a clip
    flow          per cent of the short side that the mean pixel moves a second; null for images and clips of one
                  frame: unknown is not low, so a select clause must say what it does with null
    solid_colour  share of the picture near its median colour, 0 to 1: the least over the frames looked at, so that
                  a fade does not make a clip solid
    flat_colours  share in the four commonest colours, 0 to 1: median over the frames looked at
    quality       technical quality, 0 to 10: median over the frames looked at
    num_frames_seen  frames looked at for text, colour and quality
    fingerprints  of each frame looked at: perceptual hash and coarse colours; frames with nothing to see have none

    and of each scorer named in `scorers` the least over three frames, null for the others:

    technical     technical quality, 0 to 10; needs no weights
    laion         LAION aesthetics, about 1 to 10
    embedding     mean unit embedding of the three frames by laion; else null

    Pictures are shrunk to a short side of 256 pixels first, so scores do not depend on the resolution of the
    source; details lost by that are lost to training too.
    """

    writes: ClassVar[str] = "scores"
    revision: ClassVar[int] = reading.REVISION
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "fps", "num_frames", "width", "height")),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("source_kind", pa.string()),
            ("short_side", pa.int32()),
            ("duration_s", pa.float64()),
            ("text_area", pa.float64()),
            pa.field("flow", pa.float64(), nullable=True),
            ("solid_colour", pa.float64()),
            ("flat_colours", pa.float64()),
            ("quality", pa.float64()),
            ("num_frames_seen", pa.int32()),
            ("fingerprints", pa.list_(pa.binary(fingerprint.SIZE_BYTES))),
            *(pa.field(name, pa.float64(), nullable=True) for name in SCORERS),
            pa.field("embedding", pa.list_(pa.float32()), nullable=True),
        ]
    )

    look_fps: float = 2.0
    """Pictures a second that are looked at for text, colour and quality (Data-Juicer and Curator: 2)."""
    flow_fps: float = 8.0
    """Pictures a second between which flow is measured: one short side a second is 16 of 128 pixels."""
    scorers: tuple[str, ...] = ("technical",)
    """Scorers by name: technical, laion."""
    weights: Mapping[str, str | None] = field(default_factory=dict)
    """Weights by scorer: a local folder or a hub id; `laion_head`: file of the head, if it is not in that folder."""

    def setup(self, kit: Kit) -> Any:
        """The text detector and the scorers; OpenCV keeps to one thread, for workers share the machine."""
        import cv2

        cv2.setNumThreads(1)
        return text_area.detector(), {name: self._scorer(name) for name in self.scorers}

    def _scorer(self, name: str) -> Any:
        if name == "technical":
            from stages.filter.technical import Technical

            return Technical()
        from stages.filter.laion import Laion

        return Laion(self.weights[name] or "", self.weights.get("laion_head"))

    def __post_init__(self) -> None:
        above_zero(self, "look_fps", "flow_fps")
        for name in self.scorers:
            if name not in SCORERS:
                raise UserError(f"{name!r} is no scorer: scores.scorers takes {', '.join(SCORERS)}")
            if name != "technical" and not self.weights.get(name):
                raise UserError(
                    f"the scorer {name} needs weights: write scores.weights.{name}=DIR, or an id of the hub"
                )

    def settings(self) -> dict[str, Any]:
        """Weights by what they are, not by where they lie; what no chosen scorer uses is left out."""
        used = {n: weights.named(p) for n, p in self.weights.items() if p and n.partition("_")[0] in self.scorers}
        return super().settings() | {"weights": used, "scorers": sorted(self.scorers)}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Measure each clip in one decode; ask each scorer about all clips at once."""
        detect, scorers = tools
        seen = [self._seen(row, detect) for row in rows]
        good = [one for one in seen if not isinstance(one, BadRow)]
        shots = [shot for one in good for shot in one.shots]
        scored = {name: _asked(scorer, shots) for name, scorer in scorers.items()}
        vectors = next((v for name in SCORERS if name in scored and (v := scored[name][1]) is not None), None)
        at = 0
        for one in good:
            part = slice(at, at := at + len(one.shots))
            one.row |= {name: None for name in SCORERS} | {n: min(s[part]) for n, (s, _) in scored.items()}
            one.row["embedding"] = None if vectors is None else _mean(vectors[part])
        return [one if isinstance(one, BadRow) else [one.row] for one in seen]

    def _seen(self, row: Row, detect: Any) -> _Seen | BadRow:
        motion, written = flow.Flow(), text_area.TextAreas(detect)
        texts, solids, flats, qualities, pictures = [], [], [], [], []
        due = 0.0
        try:
            for time, picture in media.sampled(row["media"], row["source_kind"], self.flow_fps, text_area.SHORT_SIDE):
                motion.add(time, picture)
                if time + 1e-6 >= due:
                    due = (int(time * self.look_fps + 1e-6) + 1) / self.look_fps
                    texts.append(written.area(picture))
                    solids.append(colour.solid_colour(picture))
                    flats.append(colour.flat_colours(picture))
                    qualities.append(quality.quality(picture))
                    pictures.append(picture)
        except BadRow as bad:
            return bad
        prints = [fingerprint.fingerprint(picture) for picture in pictures]
        measured: Row = {
            "source_kind": row["source_kind"],
            "short_side": min(row["width"], row["height"]),
            "duration_s": row["num_frames"] / row["fps"] if row["source_kind"] == "video" else 0.0,
            "text_area": sum(texts) / len(texts),
            "flow": motion.score(),
            "solid_colour": min(solids),
            "flat_colours": sorted(flats)[len(flats) // 2],
            "quality": sorted(qualities)[len(qualities) // 2],
            "num_frames_seen": len(texts),
            "fingerprints": [one for one in prints if one is not None],
        }
        middles = sorted({int((part + 0.5) * len(pictures) / _SHOTS) for part in range(_SHOTS)})
        return _Seen(measured, [pictures[index] for index in middles])


@dataclass
class _Seen:
    """What the decode of one clip gave: its row so far, and the pictures for the scorers."""

    row: Row
    shots: list[np.ndarray]


def _asked(scorer: Any, shots: Sequence[np.ndarray]) -> tuple[list[float], np.ndarray | None]:
    """Scores and, where the scorer has them, embeddings of all pictures."""
    import numpy as np

    if not shots:
        return [], None
    vectors = np.round(scorer.embedded(shots), _DIGITS) if hasattr(scorer, "embedded") else None
    found = scorer.scores(shots) if vectors is None else scorer.scored(vectors)
    return [round(float(score), _DIGITS) for score in found], vectors


def _mean(vectors: np.ndarray) -> list[float]:
    import numpy as np

    whole = vectors.mean(axis=0)
    return np.round(whole / max(float(np.linalg.norm(whole)), 1e-6), _DIGITS).tolist()
