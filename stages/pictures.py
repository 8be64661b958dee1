"""Rows of `indices` as the pictures that documents are written of. Not a stage."""

from __future__ import annotations

import numpy as np

from models.layout import Picture
from models.tokenizers.codes import unpacked
from stages.base import Row


def picture_of(row: Row, *, features: bool = False) -> Picture:
    """What the model gets of a row of `indices`."""
    fps, seconds = row["fps"], duration_s(row)
    if features:
        grid = tuple(row["feature_grid"])
        vectors = np.frombuffer(row["features"], "<f2").reshape(int(np.prod(grid)), -1)
        return Picture(grids=(grid,), vectors=vectors, features=True)
    grids = tuple(map(tuple, row["grids"]))
    if row["latents"] is not None:
        vectors = np.frombuffer(row["latents"], "<f2").reshape(sum(int(np.prod(grid)) for grid in grids), -1)
        return Picture(grids=grids, vectors=vectors, fps=fps, duration_s=seconds)
    size = row["codebook_size"]
    shown = None if row["input_ids"] is None else unpacked(row["input_ids"], size)
    return Picture(grids=grids, ids=unpacked(row["ids"], size), input_ids=shown, fps=fps, duration_s=seconds)


def duration_s(row: Row) -> float | None:
    """Seconds that the frames of a film stand for; None of a still."""
    return None if row["fps"] is None else row["num_frames"] / row["fps"]
