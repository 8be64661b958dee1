"""A convolutional encoder and decoder, mirror images of each other (VQGAN, arXiv 2012.09841, appendix).

Tensors are N C H W.

With `patch` 1 and norm groups it is the published shape; a larger patch folds the first resolutions into one matrix,
which makes it trainable on a CPU in minutes. Nothing in it uses statistics of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

from models.tokenizers.shapes import TowerShape


def norm(groups: int, width: int) -> nn.Module:
    """Group normalisation, or nothing."""
    return nn.GroupNorm(groups, width, eps=1e-6) if groups else nn.Identity()


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the second convolution is 1x1 where there are no norms."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = norm(groups, width), norm(groups, width)
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.narrow = nn.Conv2d(width, width, 3 if groups else 1, padding=1 if groups else 0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Same shape out."""
        inner = self.wide(silu(self.first_norm(x_NCHW)))
        return x_NCHW + self.narrow(silu(self.second_norm(inner)))

    def still(self) -> Residual:
        """The same block, changing nothing until it is trained."""
        nn.init.zeros_(self.narrow.weight)
        assert self.narrow.bias is not None
        nn.init.zeros_(self.narrow.bias)
        return self


class PlaceAttention(nn.Module):
    """x + attention among the places of one picture, one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Same shape out."""
        n, c, h, w = x_NCHW.shape
        q, k, v = self.qkv(self.norm(x_NCHW)).view(n, 3, c, h * w).transpose(2, 3).unbind(1)
        mixed = scaled_dot_product_attention(q, k, v)
        return x_NCHW + self.out(mixed.transpose(1, 2).reshape(n, c, h, w))


class Up(nn.Module):
    """Twice the sides: nearest neighbour and a 3x3 convolution, which leaves no checkerboard."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, out, 2H, 2W)."""
        return self.conv(interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))


def encoder(shape: TowerShape, out: int) -> nn.Sequential:
    """Pixels (N, 3, H, W) to (N, out, H / stride, W / stride)."""
    widths = [shape.width * m for m in shape.multipliers]
    parts: list[Any] = [nn.PixelUnshuffle(shape.patch)] if shape.patch > 1 else []
    parts.append(nn.Conv2d(3 * shape.patch**2, widths[0], 1 if shape.patch > 1 else 3, padding=int(shape.patch == 1)))
    for place, width in enumerate(widths):
        if place:
            parts.append(nn.Conv2d(widths[place - 1], width, 2, stride=2))
        parts += [Residual(width, shape.norm_groups) for _ in range(shape.blocks)]
    if shape.attention:
        parts += [PlaceAttention(widths[-1], shape.norm_groups), Residual(widths[-1], shape.norm_groups)]
    return nn.Sequential(*parts, norm(shape.norm_groups, widths[-1]), nn.Conv2d(widths[-1], out, 1))


def decoder(shape: TowerShape, width_in: int) -> nn.Sequential:
    """Latents (N, width_in, h, w) to pixels (N, 3, h * stride, w * stride)."""
    widths = [shape.width * m for m in reversed(shape.multipliers)]
    parts: list[Any] = [nn.Conv2d(width_in, widths[0], 3, padding=1)]
    if shape.attention:
        parts += [Residual(widths[0], shape.norm_groups), PlaceAttention(widths[0], shape.norm_groups)]
    for place, width in enumerate(widths):
        if place:
            parts.append(Up(widths[place - 1], width))
        parts += [Residual(width, shape.norm_groups) for _ in range(shape.blocks)]
    parts.append(norm(shape.norm_groups, widths[-1]))
    if shape.patch == 1:
        return nn.Sequential(*parts, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))
    return nn.Sequential(*parts, nn.Conv2d(widths[-1], 3 * shape.patch**2, 1), nn.PixelShuffle(shape.patch))


def deepened(tower: nn.Sequential) -> nn.Sequential:
    """The same function with twice the residual blocks: each is followed by one that changes nothing yet."""
    parts: list[Any] = []
    for part in tower:
        parts.append(part)
        if isinstance(part, Residual):
            with torch.no_grad():
                groups = part.first_norm.num_groups if isinstance(part.first_norm, nn.GroupNorm) else 0
                parts.append(Residual(part.wide.in_channels, groups).still())
    return nn.Sequential(*parts)
