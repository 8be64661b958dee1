"""Rotary positions. Legend: B batch, H heads, T tokens, E head size, F = E/2 frequencies, A axes.

RoPE (arXiv 2104.09864) in the half-split layout: dimension i turns together with dimension i + E/2 by the angle
position * base^(-2i/E). Positions start again at 0 in every packed document.

With several axes each frequency listens to one of them: the first `sections[0]` frequencies to axis 0, and so on
(Qwen2.5-VL's `mrope_section`). Where all axes agree, as for text, it is the 1-D RoPE. Multiscale 3-D RoPE (NextFlow,
arXiv 2601.02204) gives a visual token (row, column, scale) with rows and columns in one range for all scales:
models/places.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def document_positions(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(T) positions 0..n-1 of each document in turn, T the sum of the lengths."""
    sizes = torch.as_tensor(lengths, device=device)
    starts = torch.cumsum(sizes, 0) - sizes
    return torch.arange(int(sizes.sum()), device=device) - torch.repeat_interleave(starts, sizes)


def sections(shares: Sequence[int], frequencies: int) -> tuple[int, ...]:
    """How many of the frequencies each axis gets, in these shares, all of them given away."""
    edges = [round(sum(shares[:n]) / sum(shares) * frequencies) for n in range(len(shares) + 1)] if shares else []
    return tuple(after - before for before, after in itertools.pairwise(edges))


def rope_table(
    positions_BTA: Tensor, head_dim: int, base: float, sections: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (B, 1, T, E), of the angle of every position and dimension.

    Positions are (B, T), or (B, T, A) with `sections`, how many frequencies listen to each axis.
    """
    exponents_F = torch.arange(0, head_dim, 2, device=positions_BTA.device, dtype=torch.float32) / head_dim
    if sections:
        axis_F = torch.repeat_interleave(torch.arange(len(sections)), torch.as_tensor(sections))
        places_BTF = positions_BTA[..., axis_F.to(positions_BTA.device)].float()
    else:
        places_BTF = positions_BTA[..., None].float()
    angles_BTF = places_BTF * base**-exponents_F
    angles_BTE = torch.cat([angles_BTF, angles_BTF], dim=-1)
    return angles_BTE.cos()[:, None], angles_BTE.sin()[:, None]


def rotate(x_BHTE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`x` (B, H, T, E) turned by the table of its positions."""
    cos, sin = table
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_BHTE.float() * cos + turned.float() * sin).to(x_BHTE.dtype)
