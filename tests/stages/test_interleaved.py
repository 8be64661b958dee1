"""Interleaved data: frames with what happens between them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from stages.base import BadRow
from stages.caption.interleaved import Interleaved
from tests.stages.test_filter import film


def moving_square() -> bytes:
    frames = []
    for step in range(24):
        frame = np.full((128, 160, 3), 250, np.uint8)
        frame[40:70, 10 + 4 * step : 40 + 4 * step] = (220, 20, 20)
        frames.append(frame)
    return film(frames)


def test_frames_alternate_with_texts_of_what_happens_between_them() -> None:
    clip = {"media": moving_square(), "source_kind": "video", "fps": 24.0, "num_frames": 24, "held_out": True}
    stage = Interleaved(num_frames=3)
    tools = stage.setup(None)  # type: ignore[arg-type]
    still = clip | {"source_kind": "image", "num_frames": 1}
    made, none, short, broken = stage.process(
        [clip, still, clip | {"num_frames": 2}, clip | {"media": b"broken"}], tools
    )
    assert none == [] and short == [] and isinstance(broken, BadRow)
    (row,) = made
    assert set(row) == set(Interleaved.schema.names) and row["held_out"]
    assert len(row["frames"]) == 3 and all("small red square" in text for text in row["texts"])
    assert len(row["texts"]) == 2 and "moving right" in row["texts"][0]
    assert row["times_s"] == [4 / 24, 12 / 24, 20 / 24]
    assert Image.open(io.BytesIO(row["frames"][0])).size == (160, 128)
    assert stage.process([clip], tools)[0] == made
