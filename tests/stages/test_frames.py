"""How clips are looked at: which frames, how they are fitted, and that nothing is cut off in silence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import frames
from stages.base import BadRow
from stages.frames import View
from tests.stages.shapes_world import mp4, png, world


def _film(count: int = 24) -> bytes:
    return mp4([np.full((128, 128, 3), 5 + 10 * i, np.uint8) for i in range(count)])


def test_frames_are_square_and_the_middles_of_equal_parts() -> None:
    film = world(0, 1)[0].to_pylist()[0]
    four = frames.prepare(film["media"], "video", 24, 24.0, View(size=32, frames=4)).pictures
    assert four.shape == (4, 32, 32, 3) and four.dtype == np.uint8
    everything = frames.prepare(film["media"], "video", 24, 24.0, View(size=32, frames=24)).pictures
    assert np.array_equal(four, everything[[3, 9, 15, 21]])


def test_frames_a_second_are_kept_where_the_film_is_short_enough() -> None:
    one_second = View(size=32, frames=40, fps=6.0)
    assert one_second.places(24, 24.0) == [2, 6, 10, 14, 18, 22]
    seen = frames.prepare(_film(), "video", 24, 24.0, one_second)
    assert len(seen.pictures) == 6 and seen.fps == pytest.approx(6.0)


def test_a_film_longer_than_the_budget_is_looked_at_more_rarely_and_none_of_it_is_cut() -> None:
    short = View(size=32, frames=4, fps=24.0)
    places = short.places(240, 24.0)
    assert places == [30, 90, 150, 210]
    seen = frames.prepare(_film(), "video", 24, 24.0, View(size=32, frames=2, fps=24.0))
    assert len(seen.pictures) == 2 and seen.fps == pytest.approx(2.0)


def test_the_middle_is_eight_frames_at_twelve_a_second() -> None:
    protocol = View(size=32, frames=8, fps=12.0, cover="middle")
    assert protocol.places(120, 24.0) == [52, 54, 56, 58, 60, 62, 64, 66]
    places = protocol.places(150, 30.0)
    assert np.diff(places).tolist() == pytest.approx([2.5] * 7, abs=0.51) and abs(sum(places) / 8 - 74.5) < 1
    assert protocol.places(12, 24.0, 4) == [2, 4, 6, 8]  # six fit, the tokenizer takes fours
    assert protocol.places(6, 24.0, 4) == [0, 2, 3, 5]  # too short for four: the whole of it


@given(
    num=st.integers(1, 2000), fps=st.floats(1, 120), most=st.integers(1, 64), rate=st.none() | st.floats(0.2, 60),
    multiple=st.integers(1, 8), cover=st.sampled_from(["whole", "middle"]),
)  # fmt: skip
def test_places_are_frames_of_the_film_in_order_and_a_multiple(num, fps, most, rate, multiple, cover) -> None:
    places = View(size=8, frames=most, fps=rate, cover=cover).places(num, fps, multiple)
    assert places == sorted(places) and places[0] >= 0 and places[-1] < num
    assert len(places) % multiple == 0 and len(places) <= max(most, multiple)


@given(width=st.integers(1, 8000), height=st.integers(1, 8000), size=st.integers(16, 1024),
       stride=st.sampled_from([8, 16]))  # fmt: skip
def test_an_area_is_kept_within_the_budget_in_the_pictures_own_shape(width, height, size, stride) -> None:
    rows, columns = View(size=size, frames=1, fit="area").shape(width, height, stride)
    assert rows % stride == columns % stride == 0 and min(rows, columns) >= stride
    budget = (size // stride * stride) ** 2
    most = max(1, (size // stride) ** 2)
    if max(width / height, height / width) * 4 <= most:  # where the budget holds a picture of this shape
        assert rows * columns <= budget
        assert rows * columns >= 0.5 * budget
        assert abs(np.log((columns / rows) / (width / height))) < np.log(2.1)


def test_published_budgets_give_published_grids() -> None:
    emu3 = View(size=720, frames=1, fit="area")
    assert emu3.shape(1000, 1000, 8) == (720, 720)
    assert emu3.shape(1920, 1080, 8) in {(536, 960), (544, 952), (536, 952), (528, 960), (540, 960)}
    assert View(size=512, frames=1, fit="area").shape(512, 512, 16) == (512, 512)


def test_a_picture_in_its_own_shape_loses_no_side() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, :10] = picture[:, -10:] = 255
    seen = frames.prepare(png(picture), "image", 1, 0.0, View(size=64, frames=4, fit="area"), (1, 8))
    assert seen.pictures.shape == (1, 32, 112, 3) and seen.fps is None
    assert seen.pictures[0, :, 0].mean() > 150 and seen.pictures[0, :, -1].mean() > 150


def test_damaged_and_miscounted_films_are_bad_rows() -> None:
    for media, kind in ((b"", "image"), (b"junk", "video"), (_film()[:-2000], "video")):
        with pytest.raises(BadRow, match="source file"):
            frames.prepare(media, kind, 24, 24.0, View(size=32, frames=4))
    with pytest.raises(BadRow, match="decodes to 24 frames, its row says 25"):
        frames.prepare(_film(), "video", 25, 24.0, View(size=32, frames=4))
