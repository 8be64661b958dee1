"""Inception v3 as FID uses it, and the Frechet distance of its features. N frames, H and W pixels, D features.

The graph is TensorFlow's of 2015-12-05, as pytorch-fid and torch-fidelity rebuilt it: their file
`pt_inception-2015-12-05-6726825d.pth`, converted to safetensors, loads strictly. It differs from torchvision's in its
pools (after pytorch-fid 0.3.0, inception.py): means leave out the padding, and the last block takes a maximum.

Pixels are made ready as in pytorch-fid: bilinear to 299 x 299 without antialiasing, then -1 to 1. torch-fidelity
resizes as TensorFlow 1 did, half a pixel off, so that its figures differ a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

SIDE, FEATURES = 299, 2048
_FRAMES_AT_ONCE = 16

_Kernel = tuple[int, int]
_Layer = tuple[str, int, _Kernel, int]
"""Name, channels out, kernel, stride."""
_Branch = Sequence[Sequence[_Layer]]
"""Steps one after another; the layers of a step see the same input and are joined along the channels."""


class _Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: _Kernel, stride: int, padding: _Kernel) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches over the same input, joined along the channels, the pool last.

    `pool`: channels after its convolution; 0: none, and the pool halves the picture.
    """

    def __init__(self, channels: int, branches: Sequence[_Branch], pool: int, takes_maximum: bool = False) -> None:
        super().__init__()
        self._names = [[[layer[0] for layer in step] for step in branch] for branch in branches]
        self._takes_maximum = takes_maximum
        for branch in branches:
            width = channels
            for step in branch:
                for name, out, (high, wide), stride in step:
                    padding = (high // 2, wide // 2) if stride == 1 else (0, 0)
                    self.add_module(name, _Convolution(width, out, (high, wide), stride, padding))
                width = sum(layer[1] for layer in step)
        self.branch_pool = _Convolution(channels, pool, (1, 1), 1, (0, 0)) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for branch in self._names:
            seen = x
            for step in branch:
                seen = torch.cat([self.get_submodule(name)(seen) for name in step], dim=1)
            parts.append(seen)
        return torch.cat([*parts, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.branch_pool is None:
            return max_pool2d(x, 3, stride=2)
        if self._takes_maximum:
            return self.branch_pool(max_pool2d(x, 3, stride=1, padding=1))
        return self.branch_pool(avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def _chain(name: str, *layers: tuple[int, _Kernel], last_stride: int = 1) -> list[Sequence[_Layer]]:
    """Layers `name_1`, `name_2`, ... of (channels out, kernel), one after another."""
    last = len(layers)
    return [[(f"{name}_{i}", *layer, last_stride if i == last else 1)] for i, layer in enumerate(layers, 1)]


def _block_a(channels: int, pool: int) -> _Mixed:
    single: _Branch = [[("branch1x1", 64, (1, 1), 1)]]
    wide = _chain("branch5x5", (48, (1, 1)), (64, (5, 5)))
    double = _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
    return _Mixed(channels, [single, wide, double], pool)


def _block_b(channels: int) -> _Mixed:
    single: _Branch = [[("branch3x3", 384, (3, 3), 2)]]
    double = _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), last_stride=2)
    return _Mixed(channels, [single, double], 0)


def _block_c(channels: int, inner: int) -> _Mixed:
    single: _Branch = [[("branch1x1", 192, (1, 1), 1)]]
    row, column = (1, 7), (7, 1)
    once = _chain("branch7x7", (inner, (1, 1)), (inner, row), (192, column))
    double = _chain("branch7x7dbl", (inner, (1, 1)), (inner, column), (inner, row), (inner, column), (192, row))
    return _Mixed(channels, [single, once, double], 192)


def _block_d(channels: int) -> _Mixed:
    once = _chain("branch3x3", (192, (1, 1)), (320, (3, 3)), last_stride=2)
    wide = _chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), last_stride=2)
    return _Mixed(channels, [once, wide], 0)


def _block_e(channels: int, takes_maximum: bool) -> _Mixed:
    single: _Branch = [[("branch1x1", 320, (1, 1), 1)]]
    once: _Branch = [[("branch3x3_1", 384, (1, 1), 1)], _fork("branch3x3_2")]
    double = [*_chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3))), _fork("branch3x3dbl_3")]
    return _Mixed(channels, [single, once, double], 192, takes_maximum)


def _fork(name: str) -> Sequence[_Layer]:
    return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]


class Inception(nn.Module):
    """The network down to its last pool; `fc` is there because the file has it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), 1, (0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, False), _block_e(FEATURES, True)
        self.fc = nn.Linear(FEATURES, 1008)
        self.eval().requires_grad_(False)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """(N, 2048) features of pixels (N, 3, 299, 299), -1 to 1."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))

    @torch.no_grad()
    def features(self, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 2048) of 8-bit RGB frames of any size, a few at a time."""
        parts = []
        for start in range(0, len(frames_NHWC), _FRAMES_AT_ONCE):
            part = torch.from_numpy(np.ascontiguousarray(frames_NHWC[start : start + _FRAMES_AT_ONCE]))
            pixels = part.permute(0, 3, 1, 2).float().div(255)
            resized = interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=False)
            parts.append(self(2 * resized - 1))
        return torch.cat(parts).numpy()


def load_inception(path: Path) -> Inception:
    """The network with the weights of a safetensors file; every name and shape must be the published file's."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no safetensors file: convert the published .pth first, plait does not unpickle")
    inception = Inception()
    try:
        inception.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold the weights of pt_inception-2015-12-05-6726825d") from error
    return inception


def frechet_distance(one_ND: NDArray[np.floating], other_ND: NDArray[np.floating]) -> float:
    """FID (Heusel et al. 2017, arXiv 1706.08500, equation 6) of two sets of features, two or more each.

        |mean_1 - mean_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)        covariances over n - 1

    With C = A^T A of the centred features A, the last trace is the sum of the singular values of A_1 A_2^T: no root of
    a singular matrix is taken, so that sets smaller than D cost no accuracy, as they do with scipy's sqrtm.
    """
    roots, means = [], []
    for features in (one_ND, other_ND):
        if len(features) < 2:
            raise ValueError(f"a covariance needs two or more frames, there is {len(features)}")
        exact = torch.from_numpy(np.asarray(features, dtype=np.float64))
        means.append(exact.mean(0))
        centred = (exact - means[-1]) / (len(exact) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred)
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = roots[0].square().sum() + roots[1].square().sum()
    return float((means[0] - means[1]).square().sum() + spread - 2 * cross)
