"""Reading films and stills: limits, foreign metadata, and which frames are looked at."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from stages import media
from stages.base import BadRow


def film(num_frames: int = 24, suffix: str = "mp4", title: str = "", options: dict[str, str] | None = None) -> bytes:
    """A film of 96 x 64 whose frame i is grey of level 10 * i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=suffix) as output:
        output.metadata["title"] = title
        stream: Any = output.add_stream("mjpeg" if suffix == "avi" else "libx264", rate=24, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p" if suffix == "avi" else "yuv420p"
        for index in range(num_frames):
            grey = np.full((64, 96, 3), 10 * index, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_title_in_another_encoding_is_no_fault(tmp_path: Path) -> None:
    payload = film(suffix="avi", title="XXcafe")
    assert b"XXcafe" in payload
    path = tmp_path / "latin.avi"
    path.write_bytes(payload.replace(b"XXcafe", "XXcaf\u00e9".encode("latin-1")))
    with media.opened(path) as opened:
        assert sum(1 for _ in opened.frames()) == 24


def test_a_film_too_large_for_the_memory_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(BadRow, match="96 x 64: at most 6143 pixels"), media.opened(film()):
        pass


@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "ICtCp"])
def test_a_colour_space_that_swscale_refuses_is_taken_for_unspecified(matrix: str) -> None:
    with media.opened(film(options={"x264-params": f"colormatrix={matrix}:log-level=none"})) as opened:
        shapes = [media.picture(frame, 96, 64).shape for frame in opened.frames()]
    assert shapes == [(64, 96, 3)] * 24


def test_a_still_that_lies_about_a_length_takes_no_memory_for_it(tmp_path: Path) -> None:
    payload = bytearray(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    at = payload.index(b"IDAT") - 4
    payload[at : at + 4] = (0x7FFFFFFF).to_bytes(4, "big")
    path = tmp_path / "long.png"
    path.write_bytes(payload)
    tracemalloc.start()
    try:
        media.loaded(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_captioner_looks_at_12_frames_of_clips_under_20_s_and_at_8_of_longer_ones() -> None:
    assert [media.num_caption_frames(duration) for duration in (0.04, 19.99, 20.0, 60.0)] == [12, 12, 8, 8]


@pytest.mark.parametrize("count", [1, 8, 12, 24])
def test_frames_are_the_middles_of_equal_parts(count: int) -> None:
    pictures = media.evenly(film(), "video", 24, count, 64)
    levels = [round(float(picture.mean()) / 10) for picture in pictures]
    assert levels == [int((part + 0.5) * 24 / count) for part in range(count)]


def test_a_clip_shorter_than_the_count_gives_each_of_its_frames_once() -> None:
    assert len(media.evenly(film(num_frames=5), "video", 5, 12, 64)) == 5
