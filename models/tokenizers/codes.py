"""Codes as bytes: the smallest unsigned integers that hold every code of a codebook, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def code_type(codebook_size: int) -> np.dtype:
    """uint8 for up to 256 codes, uint16 for up to 65,536, uint32 beyond."""
    if codebook_size < 1:
        raise ValueError(f"a codebook of {codebook_size} codes has no codes: it has latents instead")
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4) if codebook_size <= 256**size))


def packed(ids: NDArray[np.integer], codebook_size: int) -> bytes:
    """Bytes of codes, in their order; ValueError where one is no code of this codebook."""
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < codebook_size):
        raise ValueError(f"codes lie between {ids.min()} and {ids.max()}, the codebook has {codebook_size}")
    return ids.astype(code_type(codebook_size)).tobytes()


def unpacked(data: bytes, codebook_size: int) -> NDArray[np.int64]:
    """The codes again."""
    return np.frombuffer(data, code_type(codebook_size)).astype(np.int64)
