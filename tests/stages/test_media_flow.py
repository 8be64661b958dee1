"""The verdict on motion is about the motion: the codec, the group of pictures and the size do not move it (W5)."""

from __future__ import annotations

import io
from typing import Any

import av
import cv2
import numpy as np
import pytest
import yaml

from pipelines.cli.compose import CONF
from stages import media
from stages.filter.flow import Flow

ENCODINGS: dict[str, tuple[str, dict[str, str], tuple[int, int]]] = {
    "h264": ("libx264", {"preset": "veryfast"}, (640, 360)),
    "keyframes at the sampling step": ("libx264", {"preset": "veryfast", "g": "12", "bf": "0"}, (640, 360)),
    "intra only": ("libx264", {"preset": "veryfast", "g": "1"}, (640, 360)),
    "vp9": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "b": "0", "crf": "30"}, (640, 360)),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}, (640, 360)),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "fast-decode=1"}, (640, 360)),
    "426x240": ("libx264", {"preset": "veryfast"}, (426, 240)),
}
FPS, NUM_FRAMES = 24, 24
MOTIONS = {"a still camera": (0.0, "low"), "a pan": (0.1, "kept"), "a race": (2.0, "high")}
"""Short sides a second, and the verdict of the demo's bounds."""


def moving(speed: float) -> list[np.ndarray]:
    """A textured wall that passes by at `speed` short sides a second, seen by a sensor with noise; 640 x 360."""
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.random((360, 640 + 1024, 3)).astype(np.float32), (0, 0), 6)
    wall = (wall - wall.min()) / np.ptp(wall) * 235 + 10
    away = [speed * 360 / FPS * index for index in range(NUM_FRAMES)]
    shifted = [cv2.getRectSubPix(wall, (640, 360), (320 + x, 179.5)) for x in away]
    return [(picture + rng.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8) for picture in shifted]


def encoded(pictures: list[np.ndarray], codec: str, options: dict[str, str], size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=FPS, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for picture in pictures:
            small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(small, "rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def flow_of(payload: bytes) -> float:
    motion = Flow()
    for time, picture in media.sampled(payload, "video", 8.0, 256):
        motion.add(time, picture)
    score = motion.score()
    assert score is not None
    return score


@pytest.fixture(scope="module")
def bounds() -> tuple[float, float]:
    """The demo's own bounds on flow, both."""
    clause = yaml.safe_load((CONF / "pipeline/demo.yaml").read_text())["select"]["flow"]
    low, high = clause.split("between")[1].split("and")
    return float(low), float(high)


@pytest.fixture(scope="module")
def films() -> dict[str, list[np.ndarray]]:
    return {name: moving(speed) for name, (speed, _) in MOTIONS.items()}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_verdict_on_a_motion_is_the_same_in_every_encoding(
    encoding: str, films: dict[str, list[np.ndarray]], bounds: tuple[float, float]
) -> None:
    codec, options, size = ENCODINGS[encoding]
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    for name, (speed, told) in MOTIONS.items():
        score = flow_of(encoded(films[name], codec, options, size))
        verdict = "low" if score < bounds[0] else "high" if score > bounds[1] else "kept"
        assert verdict == told, (name, score)
        if told == "kept":
            assert score == pytest.approx(100 * speed, rel=0.15)


@pytest.mark.parametrize(("width", "height"), [(96, 13), (400, 31), (31, 400), (4000, 16), (12, 12)])
def test_long_thin_pictures_have_a_flow_and_do_not_end_the_process(width: int, height: int) -> None:
    motion = Flow()
    for index in range(3):
        motion.add(
            index / 8, np.roll(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8), index, 1)
        )
    assert motion.score() is not None
