"""Scale schedules of next-scale models: the grids of a picture, coarse to fine, and what a scale weighs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Sides = tuple[int, int]
"""Rows and columns of places."""

VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VAR_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
VAR_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
"""arXiv 2404.02905: 680, 2240 and 9451 places."""
TOKENFLOW_256 = (1, 2, 4, 6, 8, 10, 12, 14, 16)
TOKENFLOW_384 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)
"""arXiv 2412.03069."""
NEXTFLOW = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
"""arXiv 2601.02204: the first 12 are the 256 level (900 places), 16 the 512 level (3684), all 1024 (10,084)."""
NUM_ASPECTS = 40
_LONGEST = 4.0
_CLOSEST = 0.9
"""A scale whose side is nearer to the finest one is left out: published neighbours are at most 0.875 apart."""


def grids_of(scales: Sequence[int], height: int, width: int) -> tuple[Sides, ...]:
    """Grids for a picture of height x width places: the schedule up to it, each scale in the picture's own shape.

    Of a scale with side s the grid has about s * s places, so that every shape has nearly as many places at every
    scale as the square one has; the last grid is the picture's. The paper names 40 shapes and this property, not the
    grids: the rule is ours. For squares it gives the published schedule.
    """
    finest = math.sqrt(height * width)
    coarser = [side for side in scales if side <= _CLOSEST * finest]
    found = [_fitted(side, height, width) for side in coarser] + [(height, width)]
    return tuple(dict.fromkeys(found))


def _fitted(side: int, height: int, width: int) -> Sides:
    """Of all grids within the picture's, the one nearest to side * side places and to the picture's shape."""

    def distance(sides: Sides) -> float:
        places, shape = sides[0] * sides[1] / side**2, sides[0] / sides[1] / (height / width)
        return 4 * abs(math.log(places)) + abs(math.log(shape))

    choices = [
        (rows, columns)
        for rows in range(1, height + 1)
        for columns in {side * side // rows, side * side // rows + 1}
        if 1 <= columns <= width
    ]
    return min(choices, key=lambda sides: (distance(sides), sides))


def aspects(side: int) -> tuple[Sides, ...]:
    """40 finest grids of about side * side places, from 1:4 to 4:1 in equal steps of the logarithm; the square is one.

    40 steps pass the square by on both sides: the nearest below it is moved onto it.
    """
    ratios = [_LONGEST ** (2 * place / (NUM_ASPECTS - 1) - 1) for place in range(NUM_ASPECTS)]
    ratios[NUM_ASPECTS // 2 - 1] = 1.0
    rows = [max(1, round(side * math.sqrt(ratio))) for ratio in ratios]
    return tuple((r, max(1, round(side * side / r))) for r in rows)


def nearest_aspect(side: int, height: int, width: int) -> Sides:
    """The one of `aspects` that is nearest in shape to a picture of these pixels."""
    return min(aspects(side), key=lambda sides: abs(math.log(sides[0] / sides[1] / (height / width))))


def num_places(grids: Sequence[Sides]) -> int:
    """Codes of all scales together."""
    return sum(rows * columns for rows, columns in grids)


Pass = tuple[int, NDArray[np.int64]]
"""Codes that are said at once: the number of their grid, and their places in it, in raster order."""


@functools.lru_cache(maxsize=1024)
def passes_of(grids: tuple[Sides, ...], interleave: int = 1) -> tuple[Pass, ...]:
    """The codes of a frame in the order in which they are said.

    At `interleave` 1 a grid is a pass. Above, a power of two, a grid is as many passes as a square of that side has
    places, each of every `interleave`-th row and column (parallel multiscale PixelCNN, arXiv 1703.03664), in the order
    of ordered dithering (Bayer 1973): what comes next lies as far as it can from all before, of 2 the first corner, the
    one across, and the two others.
    """
    corners = sorted(itertools.product(range(interleave), repeat=2), key=lambda at: _bayer(at[0], at[1], interleave))
    found = list[Pass]()
    for number, (rows, columns) in enumerate(grids):
        place = np.arange(rows * columns).reshape(rows, columns)
        cut = [place[row::interleave, column::interleave].ravel() for row, column in corners]
        found += [(number, places) for places in cut if places.size]
    return tuple(found)


def _bayer(row: int, column: int, side: int) -> int:
    """When a place of a square of this side comes."""
    if side == 1:
        return 0
    quarter = (side // 2) ** 2
    corner = (0, 2, 3, 1)[2 * (row % 2) + column % 2]
    return corner * quarter + _bayer(row // 2, column // 2, side // 2)


def scale_weights(grids: Sequence[Sides], alpha: float = 0.9) -> list[float]:
    """Loss weight of a code of each scale: 1 / places^alpha, times what leaves the sum over all codes as it was.

    arXiv 2601.02204, section on scale reweighting, alpha 0.9.
    """
    plain = [(rows * columns) ** -alpha for rows, columns in grids]
    total = sum(weight * rows * columns for weight, (rows, columns) in zip(plain, grids, strict=True))
    return [weight * num_places(grids) / total for weight in plain]
