"""Writes the sample corpus: raw files for people without data, and the truth about them, which no stage reads.

All comes from one seed. Each file has its own random stream, named after it, so that a longer corpus begins with
the same files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import sample_world as world

if TYPE_CHECKING:
    import numpy as np

_REVISION = 1
"""Bumped when the same arguments give other files."""
FPS = 24
FADE = 8
"""Frames in which a scene fades to black, and the next one out of it."""
SIZES = ((160, 128), (128, 128), (128, 160), (192, 128))
CODECS = {5: "vp9", 11: "vp9", 17: "vp9", 8: "hevc", 14: "hevc"}
ROTATED, VARIABLE, TOO_SMALL, NEAR_COPY = 3, 9, 22, 23
SCENE_TROUBLE = {
    2: "static", 7: "static", 13: "static", 4: "too_fast", 10: "too_fast", 16: "too_fast",
    6: "text_heavy", 12: "text_heavy", 18: "text_heavy", 15: "solid_colour", 20: "solid_colour",
    1: "low_quality", 19: "low_quality", 21: "low_quality",
}  # fmt: skip
"""Video number: what is wrong with one of its scenes."""
STILL_TROUBLE = {"text_heavy": 50, "solid_colour": 100, "too_small": 100, "low_quality": 100, "exact_duplicate": 100, "near_duplicate": 100}  # fmt: skip
"""One still in so many has this."""
_ENCODERS = {
    "h264": ("libx264", "mp4", {"crf": "18", "preset": "veryfast", "x264-params": "log-level=none"}),
    "hevc": ("libx265", "mp4", {"crf": "20", "preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "vp9": ("libvpx-vp9", "webm", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}  # fmt: skip
_WORDS = (
    "SALE TODAY ONLY NEW OFFER CALL NOW FREE PRICE NEWS LIVE SUBSCRIBE CHANNEL WEATHER MARKET REPORT EPISODE".split()
)


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


def write(
    raw: Path, truth: Path, seed: int = 7, num_videos: int = 24, num_stills: int = 1500, num_texts: int = 60
) -> None:
    """Write the corpus under `raw` and what is true of it to `truth` (JSON); nothing to do if both are there.

    Files are put in place whole and the truth comes last, so an interrupted writing is simply done again.
    """
    arguments = {"revision": _REVISION, "seed": seed, "videos": num_videos, "stills": num_stills, "texts": num_texts}
    if _is_there(raw, truth, arguments):
        return
    raw.mkdir(parents=True, exist_ok=True)
    for folder in ("videos", "stills", "texts"):
        (raw / folder).mkdir(exist_ok=True)
    told: dict[str, Any] = {}
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(lambda number: _film(raw, seed, number), range(num_videos)):
            told |= part
        spans = [range(start, min(start + 100, num_stills)) for start in range(0, num_stills, 100)]
        for part in pool.map(lambda span: _stills(raw, seed, span), spans):
            told |= part
    told |= _texts(raw, seed, num_texts)
    told |= _broken(raw)
    held_back = {"pairs": world.HELD_PAIRS, "relations": world.HELD_RELATIONS}
    sizes = {name: (raw / name).stat().st_size for name in sorted(told)}
    whole = {"arguments": arguments, "held_back": held_back, "files": told, "sizes": sizes}
    truth.parent.mkdir(parents=True, exist_ok=True)
    _put(truth, json.dumps(whole, indent=1, sort_keys=True).encode())


def _is_there(raw: Path, truth: Path, arguments: dict[str, Any]) -> bool:
    try:
        told = json.loads(truth.read_text())
        return told["arguments"] == arguments and all(
            (raw / name).stat().st_size == size for name, size in told["sizes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _put(path: Path, payload: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(payload)
    os.replace(part, path)


def _stream(seed: int, name: str) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(list(hashlib.sha256(f"{seed} {name}".encode()).digest()))


def _objects(layout: world.Layout) -> list[dict[str, Any]]:
    names = ("x", "y", "radius", "turn")
    return [
        asdict(thing) | dict(zip(names, (round(value, 4) for value in rest), strict=True))
        for thing, *rest in layout.objects
    ]


def _film(raw: Path, seed: int, number: int) -> dict[str, Any]:
    """Write one video; its part of the truth, with that of its copy if it has one."""
    source = 0 if number == NEAR_COPY else number
    rng = _stream(seed, f"film {source}")
    codec = CODECS.get(number, "h264")
    name = f"videos/film_{number:03d}.{_ENCODERS[codec][1]}"
    width, height = (80, 64) if number == TOO_SMALL else SIZES[source % len(SIZES)]
    shots: list[Shot] = []
    frames = _acted(rng, shots, width, height, SCENE_TROUBLE.get(number))
    if number == NEAR_COPY:
        frames = ((frame * 0.97 + 4).astype("uint8") for frame in frames)
    # The stored picture of the rotated film lies on its side; the display matrix turns it back.
    turned = number == ROTATED
    payload = _encoded(frames, codec, 27 if number == NEAR_COPY else None, turned, number == VARIABLE)
    _put(raw / name, _lying(payload) if turned else payload)
    told = {
        "kind": "video",
        "codec": codec,
        "width": width,
        "height": height,
        "frames": shots[-1].end,
        "cuts": [shot.start for shot in shots[1:]],
        "fades": [shot.start for shot in shots if shot.fades_in],
        "scenes": [asdict(shot) for shot in shots],
        "rotated": turned,
        "variable_fps": number == VARIABLE,
        "trouble": {TOO_SMALL: ["too_small"], NEAR_COPY: ["near_duplicate"]}.get(number, []),
        "copy_of": "videos/film_000.mp4" if number == NEAR_COPY else None,
    }
    if number != 1:
        return {name: told}
    copy = "videos/copy_of_film_001.mp4"
    _put(raw / copy, payload)
    return {name: told, copy: told | {"trouble": ["exact_duplicate"], "copy_of": name}}


def _acted(
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
    objects = [] if kind == "solid_colour" else _objects(layout)
    return Shot(*span, caption, motion, ground, objects, scene.relation, trouble), layout


def _shown(rng: np.random.Generator, shot: Shot, layout: world.Layout, width: int, height: int) -> Iterator[np.ndarray]:
    """The frames of one scene."""
    kind = shot.trouble[0] if shot.trouble else None
    strong = 18.0 if kind == "too_fast" else 3.0
    base = world.ground(rng, shot.background, height, width, strong)
    length = shot.end - shot.start
    words = _words(rng) if kind == "text_heavy" else []
    for index in range(length):
        picture = base
        if kind != "solid_colour":
            picture = world.drawn(base, layout, index / max(1, length - 1))
        picture = _spoilt(picture, kind, index, words)
        light = 1.0
        if shot.fades_in and index < FADE:
            light = index / FADE
        if shot.fades_out and index >= length - FADE:
            light = (length - 1 - index) / FADE
        noise = 14.0 if kind == "low_quality" else 1.5
        yield world.sensed(rng, picture * light, noise)


def _spoilt(picture: np.ndarray, kind: str | None, index: int, words: list[str]) -> np.ndarray:
    """Planted trouble: a racing camera, writing all over, or a lens out of focus with little light."""
    import cv2
    import numpy as np

    if kind == "too_fast":
        step = round(2.0 * min(picture.shape[:2]) / FPS)  # two short sides a second
        return np.roll(picture, (0, step * index), axis=(0, 1))
    if kind == "text_heavy":
        return _written(picture, words)
    if kind == "low_quality":
        return cv2.GaussianBlur(picture, (0, 0), 0.035 * min(picture.shape[:2])) * 0.35 + 60
    return picture


def _words(rng: np.random.Generator) -> list[str]:
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


def _encoded(frames: Iterator[np.ndarray], codec: str, crf: int | None, turned: bool, variable: bool) -> bytes:
    """A film file: one encoder thread, 24 frames a second, or gaps of 1 to 3 ticks of 1/48 s if `variable`."""
    import av
    import numpy as np

    encoder, container, options = _ENCODERS[codec]
    buffer = io.BytesIO()
    gaps = (2, 1, 2, 3, 2)
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(encoder, rate=FPS, options=options | ({"crf": str(crf)} if crf else {}))
        stream.codec_context.thread_count = 1
        from fractions import Fraction

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


def _lying(payload: bytes) -> bytes:
    """The mp4 with a display matrix that turns its picture a quarter clockwise (ISO 14496-12, box `tkhd`).

    In a version 0 box the matrix of nine 32-bit numbers begins 44 bytes after the box's name.
    """
    at = payload.index(b"tkhd") + 44
    one = 1 << 16
    return payload[:at] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + payload[at + 36 :]


def _stills(raw: Path, seed: int, numbers: range) -> dict[str, Any]:
    """Write a run of stills; their part of the truth."""
    return dict(_still(raw, seed, number) for number in numbers)


def _still(raw: Path, seed: int, number: int) -> tuple[str, dict[str, Any]]:
    import cv2

    name = f"stills/still_{number:05d}.png"
    kinds = [kind for shift, (kind, each) in enumerate(STILL_TROUBLE.items()) if number % each == 7 * shift + 6]
    kind = kinds[0] if kinds else None
    source = number - 5 if kind in ("exact_duplicate", "near_duplicate") else number
    rng = _stream(seed, f"still {source}")
    while True:
        scene = world.imagined(rng, "still")
        layout = world.laid_out(rng, scene, 1, 1)
        if layout is not None:
            break
    side = 64 if kind == "too_small" else 128
    picture = world.ground(rng, scene.background, side, side)
    if kind != "solid_colour":
        picture = world.drawn(picture, layout, 0.5)
    picture = _spoilt(picture, kind, 0, _words(rng) if kind == "text_heavy" else [])
    if kind == "near_duplicate":
        picture = picture * 0.97 + 3
    image = world.sensed(rng, picture, 14.0 if kind == "low_quality" else 1.5)
    _put(raw / name, cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    told = {
        "kind": "image",
        "width": side,
        "height": side,
        "caption": f"a plain {scene.background} picture" if kind == "solid_colour" else scene.caption(moving=False),
        "background": scene.background,
        "objects": [] if kind == "solid_colour" else _objects(layout),
        "relation": scene.relation,
        "trouble": [kind] if kind else [],
        "copy_of": f"stills/still_{source:05d}.png" if source != number else None,
    }
    return name, told


def _texts(raw: Path, seed: int, count: int) -> dict[str, Any]:
    """Write short texts about the world; their part of the truth."""
    told: dict[str, Any] = {}
    for number in range(count):
        rng = _stream(seed, f"text {number}")
        moving = [world.imagined(rng, str(rng.choice(list(world.MOTIONS)))) for _ in range(4)]
        lines = [f"Here is {scene.caption(moving=bool(rng.random() < 0.5))}." for scene in moving]
        thing = moving[0].groups[0][0]
        corners = {"circle": "no corners", "square": "four corners", "triangle": "three corners", "star": "five points"}
        lines.append(f"A {thing.shape} has {corners[thing.shape]}, and this one is {thing.colour}.")
        name = f"texts/text_{number:03d}.txt"
        _put(raw / name, ("\n".join(lines) + "\n").encode())
        told[name] = {"kind": "text", "lines": len(lines), "trouble": []}
    return told


def _broken(raw: Path) -> dict[str, Any]:
    """One truncated film (its index, at the end, is lost), one empty, and a file that is no medium."""
    films = sorted((raw / "videos").glob("film_*.mp4"))
    whole = films[0].read_bytes() if films else b"\0\0\0\x18ftypmp42" * 20
    _put(raw / "videos/truncated.mp4", whole[: len(whole) * 6 // 10])
    _put(raw / "videos/empty.mp4", b"")
    _put(raw / "videos/Thumbs.db", b"\xd0\xcf\x11\xe0 not a medium\n")
    return {
        "videos/truncated.mp4": {"kind": "video", "trouble": ["truncated"]},
        "videos/empty.mp4": {"kind": "video", "trouble": ["empty"]},
        "videos/Thumbs.db": {"kind": None, "trouble": ["not_a_medium"]},
    }
