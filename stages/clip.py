"""From videos and images to clips of one scene each, correct to the frame."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from stages import media
from stages.base import BadRow, Edge, Outcome, Row, RowStage, above_zero, blob, held_out

if TYPE_CHECKING:
    from pathlib import Path

    import av

_DETECT_WIDTH = 256
"""PySceneDetect's own working width (DEFAULT_MIN_WIDTH): its thresholds were tuned there."""
_AS_IS = {"png": "png", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class Clips(RowStage):
    """Cuts videos into scenes and stores each as a small mp4; an image passes as a clip of one frame.

    Cuts are those of PySceneDetect's content detector (hard cuts), and of its threshold detector (fades through
    black) where no hard cut or end is nearer than `min_scene_s`. A dark scene between two hard cuts is no fade.
    Scenes longer than `max_clip_s` are cut into equal parts. The detectors see one decode, shrunk to 256 pixels
    of width; a second decode writes the clips, so memory holds one frame and the encoded clips.

    Frames are counted as decoded; `end_frame` is exclusive. Clips are upright, with square pixels (the width is
    scaled by the pixel aspect), and keep the time stamps of a variable frame rate, starting at 0 (a stamp that
    does not grow is moved to one tick after its predecessor). yuv420p needs even sizes: an odd one is padded by
    repeating its last row or column. More than 8 bits are rounded to 8 without tone mapping. Sound is left out.

    An image keeps its bytes where it is a plain upright png, jpeg or webp; all else (EXIF orientation,
    transparency (laid on white), CMYK, 16 bits, animation (first frame), other formats) is written as png.
    Images have fps 0, times 0 and the frame range 0 to 1.
    """

    writes: ClassVar[str] = "clips"
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
    max_clip_s: float = 10.0
    """Longer scenes are cut into equal parts (s)."""
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
        try:
            with row["raw"].local() as path:
                if row["dataset"] == "images":
                    return [_still(row, path)]
                cuts, count = self.cuts(path, float(row["fps"]))
                ranges = _parts([0, *cuts, count], self.max_clip_s * float(row["fps"]))
                return list(self._written(row, path, ranges))
        except BadRow as bad:
            return bad

    def cuts(self, path: Path, fps: float) -> tuple[list[int], int]:
        """First frames of the scenes after the first, and the number of frames decoded."""
        import cv2
        from scenedetect import ContentDetector, FrameTimecode, ThresholdDetector

        apart = max(1, round(self.min_scene_s * fps))
        rate = Fraction(fps).limit_denominator(100_000)
        content = ContentDetector(threshold=self.threshold, min_scene_len=apart)
        dark = ThresholdDetector(threshold=self.fade_threshold, min_scene_len=apart)
        hard: list[int] = []
        fades: list[tuple[int, int, int]] = []
        size, count = None, 0
        with media.opened(path) as film:
            for frame in film.frames():
                whole = media.upright_size(frame)
                size = size or _detection_size(*whole)
                # Converted whole, then shrunk by OpenCV, as PySceneDetect does: swscale doing both at once leaves
                # colour noise in black pictures, whose random hue the content detector takes for cuts.
                image = cv2.resize(media.picture(frame, *whole, order="bgr24"), size)
                now = FrameTimecode(count, rate)
                hard += [cut.frame_num for cut in content.process_frame(now, image)]
                fades += [_fade(cut.frame_num, count) for cut in dark.process_frame(now, image)]
                count += 1
        if not count:
            raise BadRow("No frame of the video can be decoded.")
        hard += [cut.frame_num for cut in content.post_process(FrameTimecode(count - 1, rate))]
        return _merged(hard, fades, apart, count), count

    def _written(self, row: Row, path: Path, ranges: list[tuple[int, int]]) -> Iterator[Row]:
        """Decode once more and write each range of frames as an mp4."""
        with media.opened(path) as film:
            aspect, rate = media.pixel_aspect(film.stream), Fraction(row["fps"]).limit_denominator(100_000)
            frames = film.frames()
            for start, end in ranges:
                clip = _Mp4(film, aspect, rate, self.max_short_side, {"crf": str(self.crf), "preset": self.preset})
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


def _detection_size(width: int, height: int) -> tuple[int, int]:
    """What PySceneDetect shrinks to: 256 pixels of width, smaller frames as they are."""
    scale = max(1.0, width / _DETECT_WIDTH)
    return max(1, round(width / scale)), max(1, round(height / scale))


def _fade(cut: int, light: int) -> tuple[int, int, int]:
    """A fade as (frame where it became dark, cut, frame where it became light): the cut is half-way."""
    return 2 * cut - light, cut, light


def _merged(hard: list[int], fades: list[tuple[int, int, int]], apart: int, count: int) -> list[int]:
    """The union of both detectors' cuts: a fade's cut yields to hard cuts and to the ends of the film.

    Hard cuts are exact and stand as PySceneDetect spaced them. A dark stretch that begins or ends with a hard cut
    (two frames' grace: the cut in the middle is rounded) is a dark scene where it is long, and the cut itself
    where it is short, so its middle is no cut.
    """
    cuts = {cut for cut in hard if 0 < cut < count}
    for dark, cut, light in fades:
        near_edge = any(abs(edge - sharp) <= 2 for edge in (dark, light) for sharp in hard)
        near_other = any(abs(cut - other) < apart for other in (0, count, *cuts))
        if not near_edge and not near_other:
            cuts.add(cut)
    return sorted(cuts)


def _parts(bounds: list[int], longest: float) -> list[tuple[int, int]]:
    """Ranges between neighbouring bounds, each cut into the fewest equal parts of at most `longest` frames."""
    ranges = []
    for start, end in pairwise(bounds):
        parts = max(1, -int(-(end - start) // max(1.0, longest)))
        edges = [start + (end - start) * part // parts for part in range(parts + 1)]
        ranges += list(pairwise(edges))
    return ranges


class _Mp4:
    """One clip on its way to an mp4 in memory: x264, one thread, no B-frames, so that time stamps start at 0.

    Macroblock trees are off: with them the x264 in PyAV 18.1 gives other bytes from run to run.
    """

    def __init__(
        self, source: media.Film, aspect: Fraction, rate: Fraction, short_side: int, options: dict[str, str]
    ) -> None:
        import av

        self._aspect, self._short_side, self._source = aspect, short_side, source
        self._tick = source.stream.time_base or 1 / rate
        self._rate = rate
        self._bytes = io.BytesIO()
        self._container = av.open(self._bytes, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.time_base = self._tick
        self._stream.options = {"bf": "0", "x264-params": "mbtree=0:log-level=none", **options}
        self._first: int | None = None
        self._last = -1
        self._size = (0, 0)

    def add(self, frame: av.VideoFrame) -> float:
        """Encode a frame; its time in the source, s."""
        stamp = self._source.ticks(frame)
        pts = stamp if stamp is not None else (self._first or 0) + self._last + 1
        if self._first is None:
            self._first = pts
            self._size = self._target(frame)
            self._stream.width, self._stream.height = (side + side % 2 for side in self._size)
            self._stream.pix_fmt = "yuv420p"
        ready = self._prepared(frame)
        self._last = max(pts - self._first, self._last + 1)
        ready.pts, ready.time_base = self._last, self._tick
        self._container.mux(self._stream.encode(ready))
        return float(pts * self._tick)

    def _target(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width * self._aspect, Fraction(frame.height)
        upright = (height, width) if media.quarter_turns(frame) % 2 else (width, height)
        return media.fitted(round(upright[0]), round(upright[1]), self._short_side)

    def _prepared(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame at the clip's size: untouched planes where nothing has to change."""
        import av
        import numpy as np
        from av.video.reformatter import Interpolation

        width, height = self._size
        plain = not media.quarter_turns(frame) and not width % 2 and not height % 2
        if plain:
            return frame.reformat(width=width, height=height, format="yuv420p", interpolation=Interpolation.AREA)
        image = media.picture(frame, width, height)
        return av.VideoFrame.from_ndarray(
            np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"), "rgb24"
        )

    def finished(self) -> tuple[int, int, bytes]:
        """Width, height and bytes of the mp4."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._stream.width, self._stream.height, self._bytes.getvalue()


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
