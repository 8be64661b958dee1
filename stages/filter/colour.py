"""How much of a picture is one flat colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_NEAR = 24
"""Largest difference per channel (of 255) that still is the same colour: sensor noise and compression stay inside."""


def solid_colour(picture: np.ndarray) -> float:
    """Share of the picture (uint8 RGB [H, W, 3]) within 24 levels of its median colour, 0 to 1."""
    import cv2
    import numpy as np

    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(np.int16)
    near = np.abs(small - np.median(small.reshape(-1, 3), axis=0)) <= _NEAR
    return float(near.all(axis=2).mean())


def flat_colours(picture: np.ndarray) -> float:
    """Share of the picture (uint8 RGB [H, W, 3]) in its four commonest colours of 16 levels a channel, 0 to 1.

    Charts, tables and pages are drawn in a few colours and stay above 0.75 (tests); photographs hardly reach it.
    """
    import cv2
    import numpy as np

    small = np.asarray(cv2.resize(picture, (128, 128), interpolation=cv2.INTER_NEAREST), np.int32).reshape(-1, 3)
    colours = (small >> 4) @ np.array([256, 16, 1], np.int32)
    return float(np.sort(np.bincount(colours))[-4:].sum() / len(colours))
