"""Residual quantisation over grids from coarse to fine (VAR, arXiv 2404.02905, algorithms 1 and 2).

Legend: as in interface.py.

At each grid: shrink what is left by area, take the nearest code of every place, enlarge by bicubic interpolation, add
to the sum, take away from what is left. The sum is what is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.tokenizers.scales import Sides


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale of a batch of pictures, quantised."""

    latent_MD: Tensor  # noqa: N815
    """What was left, shrunk to the grid, M = N * h * w."""
    codes_Nhw: Tensor  # noqa: N815
    share: float
    """What its error and its price are weighed by: its places over those of the finest grid; 1 where its error is in no
    picture."""
    total_NDHW: Tensor  # noqa: N815
    """The sum up to and with this scale, at full size."""


def shrunk(latent_NDHW: Tensor, sides: Sides) -> Tensor:
    """(N, D, h, w): means over areas."""
    return latent_NDHW if latent_NDHW.shape[-2:] == sides else interpolate(latent_NDHW, size=sides, mode="area")


def enlarged(codes_NDhw: Tensor, sides: Sides) -> Tensor:
    """(N, D, H, W), bicubic."""
    if codes_NDhw.shape[-2:] == sides:
        return codes_NDhw
    return interpolate(codes_NDhw, size=sides, mode="bicubic")


def share_of(sides: Sides, full: Sides) -> float:
    """Places of a grid over those of the finest."""
    return sides[0] * sides[1] / (full[0] * full[1])


def quantised(
    latent_NDHW: Tensor,
    grids: Sequence[Sides],
    nearest: Callable[[Tensor, float], Tensor],
    lookup: Callable[[Tensor], Tensor],
    residual: bool = True,
) -> Iterator[Scale]:
    """Scale after scale, in float32; not `residual`: each of the whole, which then stands for all before it.

    `nearest`: (M, D) and the scale's share to codes (M); `lookup`: codes (...) to vectors (..., D).
    """
    left = latent_NDHW.float()
    total = torch.zeros_like(left)
    full = (latent_NDHW.shape[-2], latent_NDHW.shape[-1])
    for sides in grids:
        small = shrunk(left, sides).permute(0, 2, 3, 1)
        flat_MD = small.flatten(0, 2)
        share = share_of(sides, full) if residual else 1.0
        codes = nearest(flat_MD.detach(), share).view(small.shape[:3])
        part = enlarged(lookup(codes).permute(0, 3, 1, 2), full)
        total, left = (total + part, left - part) if residual else (part, left)
        yield Scale(latent_MD=flat_MD, codes_Nhw=codes, share=share, total_NDHW=total)


def parts(ids_NL: Tensor, grids: Sequence[Sides], full: Sides, lookup: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """What each scale adds (N, D, H, W), from codes in the order of the grids; each scale by itself.

    Their sum is what is decoded. Next-scale models with self-correction are shown each scale's own part and not the sum
    (arXiv 2601.02204: residual, not accumulated, features).
    """
    at = 0
    for rows, columns in grids:
        codes = ids_NL[:, at : at + rows * columns].view(-1, rows, columns)
        at += rows * columns
        yield enlarged(lookup(codes).permute(0, 3, 1, 2), full)


def drawn_inputs(
    near_Lk: Tensor, codes_Lk: Tensor, ids_L: Tensor, *, share: float, temperature: float, salt: bytes
) -> Tensor:
    """(L) codes to show a model instead of the targets `ids_L`: self-correction (arXiv 2601.02204).

    A `share` of the places draws from its k nearest codes (at distances
    `near_Lk`, least first), by a softmax over minus the distances; all others
    keep their target. What is drawn follows from the targets and `salt` alone: the same picture draws the same
    anywhere.
    """
    seed = int.from_bytes(hashlib.blake2b(ids_L.cpu().numpy().tobytes() + salt, digest_size=7).digest(), "big")
    uniform_2L = torch.rand(2, len(ids_L), generator=torch.Generator().manual_seed(seed)).to(near_Lk.device)
    reached_Lk = torch.softmax(-near_Lk / temperature, 1).cumsum(1)
    place_L = (uniform_2L[1][:, None] > reached_Lk).sum(1).clamp(max=codes_Lk.shape[1] - 1)
    drawn_L = codes_Lk.gather(1, place_L[:, None])[:, 0]
    return torch.where(uniform_2L[0] < share, drawn_L, ids_L)
