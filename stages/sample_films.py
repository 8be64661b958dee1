"""How the sample corpus's films are acted, spoilt and encoded: frames and bytes, no files."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from stages import sample_world as world

if TYPE_CHECKING:
    import numpy as np

FPS = 24
FADE = 8
"""Frames in which a scene fades to black, and the next one out of it."""
SUFFIX = {"h264": "mp4", "hevc": "mp4", "vp9": "webm"}
# x264 with macroblock trees and B-frames gives other bytes from run to run, even on one thread (measured: 4 different
# results of 6 with the build in PyAV 18.1; one of 6 without the trees). Digests decide the held-out split.
_ENCODERS = {
    "h264": ("libx264", {"crf": "18", "preset": "veryfast", "x264-params": "log-level=none:mbtree=0"}),
    "hevc": (
        "libx265",
        {"crf": "20", "preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    ),
    "vp9": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}
_WORDS = (
    ("SALE", "TODAY", "ONLY", "NEW", "OFFER", "CALL", "NOW", "FREE", "PRICE")
    + ("NEWS", "LIVE", "SUBSCRIBE", "CHANNEL", "WEATHER", "MARKET", "REPORT", "EPISODE")
)  # fmt: skip


@dataclass
class Shot:
    """One scene of a film as the truth tells it: frames from `start` to `end` (exclusive)."""

    start: int
    end: int
    caption: str
    motion: str
    background: str
    objects: list[dict[str, Any]]
    relation: str | None
    trouble: list[str] = field(default_factory=list)
    fades_in: bool = False
    fades_out: bool = False


def told_objects(layout: world.Layout) -> list[dict[str, Any]]:
    """Each object's words, centre, radius (short sides) and turn (degrees)."""
    names = ("x", "y", "radius", "turn")
    return [
        asdict(thing) | dict(zip(names, (round(value, 4) for value in rest), strict=True))
        for thing, *rest in layout.objects
    ]


def acted(
    rng: np.random.Generator, shots: list[Shot], width: int, height: int, trouble: str | None
) -> Iterator[np.ndarray]:
    """The frames of a film of 3 to 6 scenes, uint8 RGB; `shots` is filled on the way."""
    count = int(rng.integers(3, 7))
    marred = int(rng.integers(0, count)) if trouble else -1
    fading, before, start = False, None, 0
    for index in range(count):
        length = int(rng.integers(round(1.5 * FPS), 4 * FPS + 1))
        # Neighbours differ by background, as shots of different places do; beige after white is left out: the
        # content detector sees no cut there, and nor would most people in a film.
        near = {"white": "beige", "beige": "white"}.get(before or "")
        ground = str(rng.choice([name for name in world.BACKGROUNDS if name not in (before, near)]))
        kind = trouble if index == marred else None
        fades_out = index + 1 < count and bool(rng.random() < 0.3)
        shot, layout = _directed(rng, ground, kind, (width, height), (start, start + length))
        if shot.motion == "growing":  # slower, a small thing would hardly be seen to grow
            length = min(length, round(2.5 * FPS))
            shot.end = start + length
        shot.fades_in, shot.fades_out = fading, fades_out
        shots.append(shot)
        yield from _shown(rng, shot, layout, width, height)
        fading, before, start = fades_out, ground, start + length


def _directed(
    rng: np.random.Generator, ground: str, kind: str | None, size: tuple[int, int], span: tuple[int, int]
) -> tuple[Shot, world.Layout]:
    """A scene that fits the frame, and its place in the film."""
    short = min(size)
    while True:
        ways = [motion for motion in world.MOTIONS if motion != "still"]
        motion = "still" if kind == "static" else str(rng.choice(ways))
        scene = world.imagined(rng, motion, ground)
        layout = world.laid_out(rng, scene, size[0] / short, size[1] / short)
        if layout is not None:
            break
    trouble = [kind] if kind else []
    caption = f"a plain {ground} picture" if kind == "solid_colour" else scene.caption(moving=True)
    objects = [] if kind == "solid_colour" else told_objects(layout)
    return Shot(*span, caption, motion, ground, objects, scene.relation, trouble), layout


def _shown(rng: np.random.Generator, shot: Shot, layout: world.Layout, width: int, height: int) -> Iterator[np.ndarray]:
    """The frames of one scene."""
    kind = shot.trouble[0] if shot.trouble else None
    strong = 18.0 if kind == "too_fast" else 3.0
    base = world.ground(rng, shot.background, height, width, strong)
    length = shot.end - shot.start
    lines = words(rng) if kind == "text_heavy" else []
    for index in range(length):
        picture = base
        if kind != "solid_colour":
            picture = world.drawn(base, layout, index / max(1, length - 1))
        picture = spoilt(picture, kind, index, lines)
        light = 1.0
        if shot.fades_in and index < FADE:
            light = index / FADE
        if shot.fades_out and index >= length - FADE:
            light = (length - 1 - index) / FADE
        noise = 14.0 if kind == "low_quality" else 1.5
        yield world.sensed(rng, picture * light, noise)


def spoilt(picture: np.ndarray, kind: str | None, index: int, lines: list[str]) -> np.ndarray:
    """Planted trouble: a racing camera, writing all over, or a lens out of focus with little light."""
    import cv2
    import numpy as np

    if kind == "too_fast":
        step = round(2.0 * min(picture.shape[:2]) / FPS)  # two short sides a second
        return np.roll(picture, (0, step * index), axis=(0, 1))
    if kind == "text_heavy":
        return _written(picture, lines)
    if kind == "low_quality":
        return cv2.GaussianBlur(picture, (0, 0), 0.035 * min(picture.shape[:2])) * 0.35 + 60
    return picture


def words(rng: np.random.Generator) -> list[str]:
    """Six lines of two words to write over a picture."""
    return [" ".join(rng.choice(_WORDS, 2)) for _ in range(6)]


def _written(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """Six lines of capitals over the picture, dark on light or light on dark."""
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    ink = 20.0 if picture.mean() > 110 else 240.0
    mask = np.zeros((height, width), np.uint8)
    for row, line in enumerate(lines):
        scale = min(height / 270, 0.94 * width / max(1, cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)[0][0]))
        at = (round(width * 0.03), round(height * (row + 0.75) / len(lines)))
        cv2.putText(mask, line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    share = (mask.astype(np.float32) / 255)[..., None]
    return picture + share * (ink - picture)


def encoded(frames: Iterator[np.ndarray], codec: str, crf: int | None, turned: bool, variable: bool) -> bytes:
    """A film file: one encoder thread, 24 frames a second, or gaps of 1 to 3 ticks of 1/48 s if `variable`."""
    import av
    import numpy as np

    encoder, options = _ENCODERS[codec]
    buffer = io.BytesIO()
    gaps = (2, 1, 2, 3, 2)
    # Without "bitexact" the WebM muxer writes random identifiers.
    with av.open(buffer, "w", format=SUFFIX[codec], options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream(encoder, rate=FPS, options=options | ({"crf": str(crf)} if crf else {}))
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 2 * FPS)
        ticks = 0
        for index, picture in enumerate(frames):
            stored = np.ascontiguousarray(np.rot90(picture)) if turned else picture
            frame = av.VideoFrame.from_ndarray(stored, "rgb24")
            if not index:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts, frame.time_base = ticks, Fraction(1, 2 * FPS)
            ticks += gaps[index % len(gaps)] if variable else 2
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def lying(payload: bytes) -> bytes:
    """The mp4 with a display matrix that turns its picture a quarter clockwise (ISO 14496-12, box `tkhd`).

    In a version 0 box the matrix of nine 32-bit numbers begins 44 bytes after the box's name.
    """
    at = payload.index(b"tkhd") + 44
    one = 1 << 16
    return payload[:at] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + payload[at + 36 :]
