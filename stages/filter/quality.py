"""Technical quality without weights: sharpness, contrast, exposure and noise of one picture, 0 to 10."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_EDGES = 0.02
"""Sharpness is read at the steepest 2 % of the pixels, so that a plain background does not count as blur."""
_SHARP = (0.06, 0.45)
"""Share of an edge's slope that a 5-pixel blur takes away: 0.06 is a photograph blurred with a sigma of 4 pixels,
0.45 a clean one at this size, 0.29 one blurred with a sigma of 1 (measured on scikit-image's astronaut)."""
_CONTRAST = (0.06, 0.25)
"""Range of grey from the 0.5 % to the 99.5 % quantile, of 1: as good as flat, and enough for any scene."""
_NOISE = (0.01, 0.05)
"""Standard deviation of noise, of 1: hardly visible (3 levels of 255), and ruined (13 levels)."""
_CLIPPED = (0.6, 1.0)
"""Share of pixels at the ends of the scale (below 2 or above 253): a white background may be large; all is none."""


def quality(picture: np.ndarray) -> float:
    """The worst of four parts, each 0 to 1, times 10, for uint8 RGB [H, W, 3]: a picture is as good as its worst.

    sharpness  how much of the steepest edges a small blur takes away (after Crete et al. 2007)
    contrast   the widest range of a channel
    exposure   little of the picture clipped to black or white
    noise      robust estimate of Immerkaer (1996), on the median so that edges do not count
    Colours count (yellow on white has no contrast in grey). It measures damage, not beauty.
    """
    import numpy as np

    scaled = picture.astype(np.float32) / 255
    if min(scaled.shape[:2]) < 8:
        return 0.0
    ranges = np.subtract(*np.quantile(scaled.reshape(-1, 3), (0.995, 0.005), axis=0))
    clipped = (scaled < 2 / 255).all(axis=2) | (scaled > 253 / 255).all(axis=2)
    parts = (
        _between(_sharpness(scaled), *_SHARP),
        _between(float(ranges.max()), *_CONTRAST),
        1 - _between(float(clipped.mean()), *_CLIPPED),
        1 - _between(_noise(scaled.mean(axis=2)), *_NOISE),
    )
    return 10 * min(parts)


def _between(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, straight in between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _sharpness(scaled: np.ndarray) -> float:
    """Share of the slope of the steepest pixels that a blur of 5 x 5 takes away: 0 blurred, about 0.6 a hard step.

    The picture is smoothed a little first (sigma 0.8), so that noise is not taken for sharpness.
    """
    import cv2
    import numpy as np

    calm = cv2.GaussianBlur(scaled, (0, 0), 0.8)
    before, after = _slope(calm), _slope(cv2.blur(calm, (5, 5)))
    steep = before >= np.quantile(before, 1 - _EDGES)
    total = float(before[steep].sum())
    return 1 - float(after[steep].sum()) / total if total > 1e-6 else 0.0


def _slope(scaled: np.ndarray) -> np.ndarray:
    """Slope of each pixel, all channels together: float32 [H, W]."""
    import cv2
    import numpy as np

    across, down = cv2.Sobel(scaled, cv2.CV_32F, 1, 0), cv2.Sobel(scaled, cv2.CV_32F, 0, 1)
    return np.sqrt((across * across + down * down).sum(axis=2))


def _noise(grey: np.ndarray) -> float:
    """Standard deviation of white noise: Immerkaer's mask has gain 6; a median of |x| is 0.6745 sigma."""
    import cv2
    import numpy as np

    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.median(np.abs(cv2.filter2D(grey, -1, mask)))) / (6 * 0.6745)
