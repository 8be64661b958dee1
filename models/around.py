"""What is known around a place of a grid that is said in passes: nine neighbours, each by the best code there is.

A neighbour (the place itself among them) whose code an earlier pass said is shown by that code, any other one by the
code of the coarser grid that covers it: so a place sees what it has to fit to, however few passes there are. Without
this a place of a later pass would see the earlier ones through attention alone; what that costs: docs/evaluation.md.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from models.tokenizers.scales import Sides, passes_of

Ints = NDArray[np.int64]
NEIGHBOURS = 9
SLOTS = 2 * NEIGHBOURS
"""Neighbours by the coarser grid, row by row, and behind them neighbours by their own codes."""
NOBODY = SLOTS
"""The slot of a neighbour beyond the edge."""


@functools.lru_cache(maxsize=1024)
def around(grids: tuple[Sides, ...], interleave: int) -> tuple[tuple[Ints, Ints], ...]:
    """Of each pass of a frame, (n, 9) codes around each of its places, by their turn among all codes of the frame as
    they are said, and (n, 9) slots. Of the coarsest grid, around which nothing is known, all are `NOBODY`."""
    passes = passes_of(grids, interleave)
    turns = [np.zeros(sides, np.int64) for sides in grids]
    begins = np.cumsum([0, *(len(places) for _, places in passes)])
    for begin, (number, places) in zip(begins[:-1], passes, strict=True):
        turns[number].flat[places] = begin + np.arange(len(places))
    return tuple(
        _of_pass(turns, number, places, int(begin)) for begin, (number, places) in zip(begins[:-1], passes, strict=True)
    )


def _of_pass(turns: list[Ints], number: int, places: Ints, begin: int) -> tuple[Ints, Ints]:
    """`turns` of every grid (h, w); `begin`: the first of this pass."""
    rows, columns = turns[number].shape
    neighbour = np.arange(NEIGHBOURS)
    row = places[:, None] // columns + neighbour // 3 - 1
    column = places[:, None] % columns + neighbour % 3 - 1
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns) & (number > 0)
    row, column = row.clip(0, rows - 1), column.clip(0, columns - 1)
    coarser = turns[max(number - 1, 0)]
    own = turns[number][row, column]
    covering = coarser[
        (2 * row + 1) * coarser.shape[0] // (2 * rows), (2 * column + 1) * coarser.shape[1] // (2 * columns)
    ]
    said = own < begin
    slot = np.where(said, NEIGHBOURS + neighbour, neighbour)
    return np.where(said, own, covering), np.where(inside, slot, NOBODY)
