"""How much of a picture is text: the detector alone, nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages import reading
from stages.reading import SHORT_SIDE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SHORT_SIDE", "TextAreas", "detector", "text_area"]


def detector() -> Any:
    """The text detector, once per worker."""
    return reading.engine()


_STILL = 10
"""A picture in which nothing differs by more levels (of 255, smoothed over 5 x 5) from the one last read holds the
same text: a new subtitle differs by 50 and more, noise and compression by less."""


class TextAreas:
    """Text of the pictures of one clip, in order of time: what stands still is not read again."""

    def __init__(self, detect: Any) -> None:
        self._detect = detect
        self._read: tuple[np.ndarray, float] | None = None

    def area(self, picture: np.ndarray) -> float:
        """As `text_area`."""
        import cv2

        calm = cv2.blur(picture, (5, 5))
        last = self._read
        if last is not None and last[0].shape == calm.shape and int(cv2.absdiff(calm, last[0]).max()) <= _STILL:
            return last[1]
        self._read = calm, text_area(self._detect, picture)
        return self._read[1]


def text_area(detect: Any, picture: np.ndarray) -> float:
    """Share of the picture (uint8 RGB [H, W, 3]) inside text boxes, 0 to 1; overlapping boxes count once."""
    import cv2
    import numpy as np

    mask = np.zeros(picture.shape[:2], np.uint8)
    for box in reading.lines(detect, picture):
        cv2.fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
    return float(mask.mean())
