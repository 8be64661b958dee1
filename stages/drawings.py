"""Plain drawings, as the captioner and the judge of pixels both see them: their ground, and colours by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PLAIN = 0.5
"""A drawing's background covers at least this share of the picture."""
FLAT = 30
"""Largest distance in a channel (of 255) that still is the background's colour: texture and compression."""
_HUES = (
    ("red", 9),
    ("orange", 19),
    ("yellow", 33),
    ("green", 85),
    ("blue", 132),
    ("purple", 160),
    ("pink", 172),
    ("red", 180),
)
"""Name and upper end of hue in OpenCV's half degrees."""
_GREY_SATURATION = 0.2


def colour_name(colour: np.ndarray) -> str:
    """The name of an RGB colour: grey steps, brown and beige included."""
    import colorsys

    red, green, blue = (float(value) / 255 for value in colour)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if saturation < _GREY_SATURATION or value < 0.18:
        return _grey(value)
    name = next(name for name, end in _HUES if hue * 180 <= end)
    if name in ("orange", "yellow") and saturation < 0.45:
        return "beige" if value > 0.6 else "brown"
    return "brown" if name in ("orange", "red") and value < 0.5 and saturation < 0.75 else name


def _grey(value: float) -> str:
    return "white" if value > 0.82 else "grey" if value > 0.22 else "black"


def distance_from_ground(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median colour (RGB), and of each pixel the largest distance to it in a channel, int16 [H, W].

    Of a drawing whose background covers more than half of it the median is the background's colour.
    """
    import numpy as np

    ground = np.median(picture.reshape(-1, 3), axis=0)
    return ground, np.abs(picture.astype(np.int16) - ground).max(axis=2)
