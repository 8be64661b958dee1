"""How well frames are redrawn: PSNR and SSIM. Legend: N frames, H and W pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N) peak signal to noise of 8-bit frames, dB: 10 log10(255^2 / mean squared error); equal frames give 100."""
    error = np.square(frames.astype(np.float64) - others).mean(axis=(1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 * 1e-10))


def ssim(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N) structural similarity, -1 to 1, mean over channels and places (Wang et al. 2004, equation 13).

    Gaussian window of 11x11, sigma 1.5, K1 0.01, K2 0.03, no padding: the settings of the paper.
    """
    x, y = (torch.from_numpy(part).permute(0, 3, 1, 2).double() for part in (frames, others))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    bottom = (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return (top / bottom).mean(dim=(1, 2, 3)).numpy()


def _blurred(x_NCHW: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    n, c, h, w = x_NCHW.shape
    rows = conv2d(x_NCHW.reshape(n * c, 1, h, w), line.view(1, 1, -1, 1))
    return conv2d(rows, line.view(1, 1, 1, -1)).view(n, c, h - _WINDOW + 1, w - _WINDOW + 1)
