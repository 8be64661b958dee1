"""From videos and images to clips of one scene each, correct to the frame."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from stages import cuts, media
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero, blob, held_out
from stages.mp4 import Mp4

if TYPE_CHECKING:
    from pathlib import Path

_AS_IS = {"png": "png", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class Clips(RowStage):
    """Cuts videos into scenes and stores each as a small mp4; an image passes as a clip of one frame.

    Cuts are those of PySceneDetect's content detector (hard cuts), and of its threshold detector (fades through
    black) where no hard cut or end is nearer than `min_scene_s`. A dark scene between two hard cuts is no fade.
    A scene longer than `max_clip_s` becomes sub-clips: the fewest equal parts that are not longer, so none is shorter
    than half of it. At 20 s they have 10 to 20 s, which is Emu3's rule for scenes that are too long for one caption.
    Sub-clips are clips like all others: each is scored, captioned and tokenized by itself. The detectors see one
    decode, shrunk to 256 pixels of width (`cuts.py`); a second decode writes the clips, so memory holds a few frames
    and the encoded clips.

    Frames are counted as decoded; `end_frame` is exclusive. Clips are upright, with square pixels (the width is
    scaled by the pixel aspect), and keep the time stamps of a variable frame rate, starting at 0 (a stamp that
    does not grow is moved to one tick after its predecessor). yuv420p needs even sizes: an odd one is padded by
    repeating its last row or column. More than 8 bits are rounded to 8 without tone mapping. Sound is left out.

    An image keeps its bytes where it is a plain upright png, jpeg or webp; all else (EXIF orientation,
    transparency (laid on white), CMYK, 16 bits, animation (first frame), other formats) is written as png.
    Images have fps 0, times 0 and the frame range 0 to 1.
    """

    writes: ClassVar[str] = "clips"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("videos", columns=("digest", "fps", "num_frames")),
        Edge("images", columns=("digest",)),
    )
    content: ClassVar[tuple[str, ...] | None] = ("digest", "start_frame", "end_frame", "encoding")
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("source_kind", pa.string()),
            ("digest", pa.string()),
            ("start_frame", pa.int64()),
            ("end_frame", pa.int64()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("num_frames", pa.int64()),
            ("fps", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("encoding", pa.string()),
            ("held_out", pa.bool_()),
            blob("media"),
        ]
    )

    threshold: float = 27.0
    """Content detector: mean change of hue, saturation and value, 0 to 255. 27 is PySceneDetect's default."""
    fade_threshold: float = 12.0
    """Threshold detector: mean of R, G and B under which a frame is black. 12 is PySceneDetect's default."""
    min_scene_s: float = 0.6
    """Cuts nearer than this (s) to another are merged. PySceneDetect's 15 frames at 25 frames a second."""
    max_clip_s: float = 20.0
    """Longer scenes are cut into the fewest equal parts of at most this (s)."""
    max_short_side: int = 720
    """Clips are shrunk to this short side (pixels), never enlarged."""
    codec: Literal["h264"] = "h264"
    crf: int = 18
    """x264 quality; 18 is about visually lossless."""
    preset: str = "veryfast"
    """x264 effort: size against time at equal quality."""

    def encoding(self) -> str:
        """The token that names how a video clip was written: part of what a clip is."""
        return f"{self.codec}-crf{self.crf}-{self.preset}-yuv420p-{self.max_short_side}"

    def __post_init__(self) -> None:
        above_zero(self, "threshold", "min_scene_s", "max_clip_s", "max_short_side")

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Cut each video; pass each image."""
        return [self._clips(row) for row in rows]

    def _clips(self, row: Row) -> Outcome:
        from av.error import FFmpegError

        try:
            with row["raw"].local() as path:
                if row["dataset"] == "images":
                    return [_still(row, path)]
                firsts, count = self.cuts(path, float(row["fps"]))
                ranges = _parts([0, *firsts, count], self.max_clip_s * float(row["fps"]))
                return list(self._written(row, path, ranges))
        except BadRow as bad:
            return bad
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            said = error.strerror or "no reason given"
            return BadRow(f"No clip of it can be written as H.264 ({said}): sides there have 2 to 16384 pixels.")

    def cuts(self, path: Path, fps: float) -> tuple[list[int], int]:
        """First frames of the scenes after the first, and the number of frames decoded."""
        with media.opened(path) as film:
            seen = cuts.changes(film)
        count = len(seen.light)
        if not count:
            raise BadRow("No frame of the video can be decoded.")
        apart = max(1, round(self.min_scene_s * fps))
        return cuts.cuts(seen, media.rate(fps), apart, self.threshold, self.fade_threshold), count

    def _written(self, row: Row, path: Path, ranges: list[tuple[int, int]]) -> Iterator[Row]:
        """Decode once more and write each range of frames as an mp4."""
        with media.opened(path) as film:
            aspect, rate = media.pixel_aspect(film.stream), media.rate(row["fps"])
            frames = film.frames()
            for start, end in ranges:
                clip = Mp4(film, aspect, rate, self.max_short_side, {"crf": str(self.crf), "preset": self.preset})
                times = [clip.add(frame) for _, frame in zip(range(start, end), frames, strict=False)]
                if len(times) < end - start:
                    raise BadRow("The video decodes to fewer frames at the second reading: it is unstable or changed.")
                width, height, payload = clip.finished()
                yield {
                    "source_kind": "video",
                    "digest": row["digest"],
                    "start_frame": start,
                    "end_frame": end,
                    "start_s": times[0],
                    "end_s": times[-1] + 1 / float(rate),
                    "num_frames": end - start,
                    "fps": row["fps"],
                    "width": width,
                    "height": height,
                    "encoding": self.encoding(),
                    "held_out": held_out(row["digest"]),
                    "media": payload,
                    "label": f"{row['label']} [{start}:{end}]",
                }


def _parts(bounds: list[int], longest: float) -> list[tuple[int, int]]:
    """Ranges between neighbouring bounds, each cut into the fewest equal parts of at most `longest` frames."""
    ranges = []
    for start, end in pairwise(bounds):
        parts = max(1, -int(-(end - start) // max(1.0, longest)))
        edges = [start + (end - start) * part // parts for part in range(parts + 1)]
        ranges += list(pairwise(edges))
    return ranges


def _still(row: Row, path: Path) -> Row:
    """An image as a clip of one frame, its own bytes where every reader sees them alike."""
    original = path.read_bytes()
    image = media.loaded(original)
    token = _AS_IS.get((image.format or "").lower())
    payload = original
    if token is None or not _plain(original):
        image = media.opaque(image)
        buffer = io.BytesIO()
        image.save(buffer, "png")
        payload, token = buffer.getvalue(), "png-rewritten"
    return {
        "source_kind": "image",
        "digest": row["digest"],
        "start_frame": 0,
        "end_frame": 1,
        "start_s": 0.0,
        "end_s": 0.0,
        "num_frames": 1,
        "fps": 0.0,
        "width": image.width,
        "height": image.height,
        "encoding": token,
        "held_out": held_out(row["digest"]),
        "media": payload,
        "label": row["label"],
    }


def _plain(original: bytes) -> bool:
    """Whether the file is upright, opaque, 8-bit and not animated."""
    from PIL import Image

    with Image.open(io.BytesIO(original)) as image:
        turned = image.getexif().get(0x0112, 1) != 1
        moving = getattr(image, "n_frames", 1) > 1
        return not turned and not moving and not image.has_transparency_data and image.mode in ("RGB", "L", "P")
