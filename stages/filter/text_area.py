"""How much of a picture is text: the detector alone, nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages import reading
from stages.reading import SHORT_SIDE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SHORT_SIDE", "detector", "text_area"]


def detector() -> Any:
    """The text detector, once per worker."""
    return reading.engine()


def text_area(detect: Any, picture: np.ndarray) -> float:
    """Share of the picture (uint8 RGB [H, W, 3]) inside text boxes, 0 to 1; overlapping boxes count once."""
    import cv2
    import numpy as np

    mask = np.zeros(picture.shape[:2], np.uint8)
    for box in reading.lines(detect, picture):
        cv2.fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
    return float(mask.mean())
