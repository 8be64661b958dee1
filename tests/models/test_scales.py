"""Scale schedules: published sums, grids of every shape with nearly as many places, weights that keep the total."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tokenizers import scales
from models.tokenizers.scales import aspects, grids_of, nearest_aspect, num_places, passes_of, scale_weights


@pytest.mark.parametrize(
    ("schedule", "places"),
    [
        (scales.NEXTFLOW[:12], 900),
        (scales.NEXTFLOW[:16], 3684),
        (scales.NEXTFLOW, 10_084),
        (scales.VAR_256, 680),
        (scales.VAR_512, 2240),
        (scales.VAR_1024, 9451),
    ],
)
def test_published_schedules_have_the_published_number_of_places(schedule: tuple[int, ...], places: int) -> None:
    assert sum(side * side for side in schedule) == places
    side = schedule[-1]
    assert grids_of(schedule, side, side) == tuple((s, s) for s in schedule)
    assert num_places(grids_of(schedule, side, side)) == places


@pytest.mark.parametrize(("side", "levels"), [(16, 12), (32, 16), (64, 18)])
def test_a_smaller_picture_has_the_first_scales(side: int, levels: int) -> None:
    assert grids_of(scales.NEXTFLOW, side, side) == tuple((s, s) for s in scales.NEXTFLOW[:levels])


@pytest.mark.parametrize("side", [16, 32, 64])
def test_forty_shapes_have_nearly_as_many_places_at_every_scale(side: int) -> None:
    shapes = aspects(side)
    assert len(shapes) == 40 and shapes[0][1] == 4 * shapes[0][0] == 2 * side and shapes[-1][0] == 4 * shapes[-1][1]
    square = grids_of(scales.NEXTFLOW, side, side)
    for height, width in shapes:
        grids = grids_of(scales.NEXTFLOW, height, width)
        assert grids[-1] == (height, width) and len(grids) in (len(square), len(square) - 1)
        for own, (plain, _) in zip(grids, square, strict=False):
            off = abs(own[0] * own[1] - plain**2)
            assert off <= max(1, 0.12 * plain**2), (own, plain)
        assert abs(num_places(grids) / num_places(square) - 1) < 0.06


def test_the_nearest_shape_is_the_nearest() -> None:
    assert nearest_aspect(16, 1000, 4000) == (8, 32) and nearest_aspect(16, 4000, 1000) == (32, 8)
    for side in (16, 32, 64):
        assert nearest_aspect(side, 1000, 1000) == (side, side)
    rows, columns = nearest_aspect(32, 1080, 1920)
    assert abs(rows / columns - 1080 / 1920) < 0.04


def test_weights_keep_the_total_and_give_the_published_shares() -> None:
    grids = grids_of(scales.NEXTFLOW, 64, 64)
    weights = scale_weights(grids, 0.9)
    places = [rows * columns for rows, columns in grids]
    assert sum(w * n for w, n in zip(weights, places, strict=True)) == pytest.approx(10_084)
    assert weights[0] == pytest.approx(344, abs=0.5) and weights[-1] == pytest.approx(0.193, abs=5e-4)
    shares = [w * n / 10_084 for w, n in zip(weights, places, strict=True)]
    assert shares[0] == pytest.approx(0.034, abs=5e-4) and shares[-1] == pytest.approx(0.078, abs=5e-4)
    assert places[0] / 10_084 == pytest.approx(0.0001, abs=5e-5) and places[-1] / 10_084 == pytest.approx(
        0.406, abs=5e-4
    )
    assert scale_weights(grids, 0.0) == pytest.approx([1.0] * 18)


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.lists(SIDES, min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_passes_say_every_place_once_grid_after_grid(grids: list[tuple[int, int]], interleave: int) -> None:
    passes = passes_of(tuple(grids), interleave)
    numbers = [number for number, _ in passes]
    assert numbers == sorted(numbers) and all(len(places) for _, places in passes)
    for number, (rows, columns) in enumerate(grids):
        said = [places for which, places in passes if which == number]
        assert len(said) == min(interleave, rows) * min(interleave, columns)
        assert sorted(np.concatenate(said).tolist()) == list(range(rows * columns))
        for places in said:
            row, column = np.divmod(places, columns)
            assert len(set(row % interleave)) == len(set(column % interleave)) == 1


def test_passes_follow_the_matrix_of_ordered_dithering() -> None:
    """Bayer's 4 x 4."""
    matrix = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]
    said = [places.tolist() for _, places in passes_of(((4, 4),), 4)]
    assert said == [[place] for place in np.argsort(np.ravel(matrix)).tolist()]
