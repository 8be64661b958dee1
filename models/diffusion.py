"""Latents in the trunk: noise, patches, time (Transfusion, arXiv 2408.11039; DDPM, 2006.11239; cosine, 2102.09672).

Legend: P places of latents, C numbers of a latent (2x2 patches of c channels, C = 4c), D width, (t, h, w) a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

Grid = tuple[int, int, int]
PATCH = 2
_MAX_BETA = 0.999
_OFFSET = 0.008


def kept_share(steps: int) -> Tensor:
    """(steps) float64: how much of the variance is still the picture's at each noise step, almost 1 down to almost 0.

    Cosine schedule with betas of at most 0.999 (2102.09672, equation 17); diffusers' `squaredcos_cap_v2`.
    """
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((edges + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - level[1:] / level[:-1]).clamp(max=_MAX_BETA), 0)


def noised(clean_PC: Tensor, noise_PC: Tensor, kept_P: Tensor) -> Tensor:
    """(P, C): sqrt(kept) * clean + sqrt(1 - kept) * noise."""
    return kept_P.sqrt()[:, None] * clean_PC + (1 - kept_P).sqrt()[:, None] * noise_PC


def sinusoids(values: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """(..., width) cosines and sines of numbers at `width` / 2 frequencies."""
    half = width // 2
    rates = base ** (-torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = values.float()[..., None] * rates
    return torch.cat((angles.cos(), angles.sin(), angles.new_zeros(*angles.shape[:-1], width % 2)), -1)


class TimeEmbedding(nn.Module):
    """Noise step to a vector: sinusoids, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, step_P: Tensor) -> Tensor:
        """(P) to (P, D)."""
        return self.last(silu(self.first(sinusoids(step_P, self.width).to(self.first.weight.dtype))))


class LinearPatches(nn.Module):
    """A matrix in, a norm and a matrix out."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(size, width), nn.RMSNorm(width), nn.Linear(width, size)

    def enter(self, latent_PC: Tensor, time_PD: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """(P, D), and nothing that the way out needs."""
        return self.into(latent_PC) + time_PD, latent_PC[:0]

    def leave(self, hidden_PD: Tensor, time_PD: Tensor, grids: Sequence[Grid], kept: Tensor) -> Tensor:
        """(P, C)."""
        return self.out(self.norm(hidden_PD))


class _Residual(nn.Module):
    """Two convolutions with the time in between."""

    def __init__(self, width: int, width_time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(width_time, width)

    def forward(self, x_NDHW: Tensor, time_ND: Tensor) -> Tensor:
        y = self.convs[0](silu(self.norms[0](x_NDHW))) + self.time(silu(time_ND))[:, :, None, None]
        return x_NDHW + self.convs[1](silu(self.norms[1](y)))


class UnetIn(nn.Module):
    """Convolutions at twice the grid, halved into the trunk; of all pictures in one call."""

    def __init__(self, channels: int, inner: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1)
        self.down = _Residual(inner, width)
        self.shrink = nn.Conv2d(inner, width, PATCH, stride=PATCH)

    def forward(self, latent_PC: Tensor, time_PD: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """See `UnetPatches.enter`."""
        entered, kept = [], []
        for x_thwC, time_D in zip(_pictures(latent_PC, grids), _first(time_PD, grids), strict=True):
            small = pixel_shuffle(x_thwC.permute(0, 3, 1, 2), PATCH)
            kept.append(self.down(self.first(small), time_D.expand(len(small), -1)))
            entered.append(self.shrink(kept[-1]).permute(0, 2, 3, 1).flatten(0, 2))
        # one tensor: ZeRO-3 hooks every one, and ranks must have equally many
        return torch.cat(entered) + time_PD, torch.cat([one.permute(0, 2, 3, 1).flatten(0, 2) for one in kept])


class UnetOut(nn.Module):
    """Doubled out of the trunk, with the skip; of all pictures in one call."""

    def __init__(self, channels: int, inner: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.widen = nn.Conv2d(width, inner, 3, padding=1)
        self.join = nn.Conv2d(2 * inner, inner, 1)
        self.up = _Residual(inner, width)
        self.last = nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, hidden_PD: Tensor, time_PD: Tensor, grids: Sequence[Grid], kept: Tensor) -> Tensor:
        """See `UnetPatches.leave`."""
        left = []
        skips = [x.permute(0, 3, 1, 2) for x in _pictures(kept, [(t, PATCH * h, PATCH * w) for t, h, w in grids])]
        for x_thwD, time_D, skip in zip(
            _pictures(self.norm(hidden_PD), grids), _first(time_PD, grids), skips, strict=True
        ):
            wide = self.widen(interpolate(x_thwD.permute(0, 3, 1, 2), scale_factor=PATCH, mode="nearest"))
            y = self.up(self.join(torch.cat((wide, skip), 1)), time_D.expand(len(wide), -1))
            left.append(pixel_unshuffle(self.last(y), PATCH).permute(0, 2, 3, 1).flatten(0, 2))
        return torch.cat(left)


class UnetPatches(nn.Module):
    """A U-Net of one level: residual blocks at twice the grid, halved into the trunk, doubled out of it with a skip."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        sizes = size // PATCH**2, max(16, width // 4), width
        self.into, self.out = UnetIn(*sizes), UnetOut(*sizes)

    def enter(self, latent_PC: Tensor, time_PD: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """(P, D), and what skips the trunk: (4P, inner), picture by picture."""
        return self.into(latent_PC, time_PD, grids)

    def leave(self, hidden_PD: Tensor, time_PD: Tensor, grids: Sequence[Grid], kept: Tensor) -> Tensor:
        """(P, C)."""
        return self.out(hidden_PD, time_PD, grids, kept)


AT_ONCE = (UnetIn, UnetOut)
"""Modules that use their weights once for each picture: whoever shards weights must bring them together around the
whole call, since ranks have unequally many pictures."""


def _pictures(rows_PX: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Rows as (t, h, w, X), picture by picture."""
    sizes = [t * h * w for t, h, w in grids]
    return [part.unflatten(0, grid) for part, grid in zip(rows_PX.split(sizes), grids, strict=True)]


def _first(rows_PX: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """The first row of each picture: all rows of a picture have one time."""
    sizes = torch.tensor([t * h * w for t, h, w in grids])
    return list(rows_PX[(torch.cumsum(sizes, 0) - sizes).to(rows_PX.device)])
