"""Rotary positions. Legend: B batch, H heads, T tokens, E head size.

RoPE (arXiv 2104.09864) in the half-split layout: dimension i turns together with dimension i + E/2 by the angle
position * base^(-2i/E). Positions start again at 0 in every packed document. Multiscale 3-D RoPE will stand here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def document_positions(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(T) positions 0..n-1 of each document in turn, T the sum of the lengths."""
    sizes = torch.as_tensor(lengths, device=device)
    starts = torch.cumsum(sizes, 0) - sizes
    return torch.arange(int(sizes.sum()), device=device) - torch.repeat_interleave(starts, sizes)


def rope_table(positions_BT: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (B, 1, T, E), of the angle of every position and dimension."""
    exponents_F = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles_BTF = positions_BT[..., None].float() * base**-exponents_F
    angles_BTE = torch.cat([angles_BTF, angles_BTF], dim=-1)
    return angles_BTE.cos()[:, None], angles_BTE.sin()[:, None]


def rotate(x_BHTE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`x` (B, H, T, E) turned by the table of its positions."""
    cos, sin = table
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_BHTE.float() * cos + turned.float() * sin).to(x_BHTE.dtype)
