"""How much moves: dense optical flow between sampled frames. From pixels, so every codec gives the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SHORT_SIDE = 128
"""Flow is measured at this short side (pixels), never enlarged."""
_LEAST_SIDE, _SMALLEST = 32, 12
"""DIS with patches of 8 pixels at a quarter of the size crashes the process on long pictures with a shorter side than
the first (OpenCV 5.0); they are enlarged to it. Under the second there is nothing to follow."""
_DARK = 6
"""Level of green (0 to 255) under which the median pixel is black: nothing to follow in a frame faded out."""
_CHANGED = 4
"""A pixel has changed where the pictures, smoothed over 5 x 5, differ by more levels (of 255): sensor noise of 1.5
levels and the flicker of compression stay below."""
_NEAR = 0.08
"""Flow counts within this distance (short sides) of a change: in flat areas it is made up from noise."""


class Flow:
    """Mean flow over a clip, fed with pictures in order of time.

    DIS optical flow (Kroeger et al. 2016, OpenCV's fast preset): a tenth of the cost of Farneback. The score of a
    pair of pictures is the mean length over all pixels, over the short side, per second, in per cent: 100 means
    that the whole picture moves by its short side each second. A fade is no motion: the later picture is brought
    to the earlier one's median brightness first, and black pictures are skipped. Where nothing changed near a pixel
    it has not moved, so noise on a still picture gives 0.
    """

    def __init__(self) -> None:
        import cv2

        self._dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._before: tuple[float, np.ndarray, float] | None = None
        self._sum, self._pairs = 0.0, 0

    def add(self, time: float, picture: np.ndarray) -> None:
        """The next picture, uint8 RGB [H, W, 3], at `time` seconds."""
        import cv2
        import numpy as np

        if min(picture.shape[:2]) < _SMALLEST:
            return
        scale = min(1.0, SHORT_SIDE / min(picture.shape[:2]))
        if scale < 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        elif min(picture.shape[:2]) < _LEAST_SIDE:
            scale = _LEAST_SIDE / min(picture.shape[:2])
            picture = cv2.resize(picture, None, fx=scale, fy=scale)
        level = float(np.median(picture[..., 1]))
        before, self._before = self._before, (time, picture, level)
        if before is None or time <= before[0]:
            return
        if min(level, before[2]) < _DARK and max(level, before[2]) >= _DARK:
            return
        matched = picture
        if level >= _DARK and abs(level - before[2]) > 1:
            matched = cv2.convertScaleAbs(picture, alpha=before[2] / level)
        self._sum += 100 * self._length(before[1], matched) / min(picture.shape[:2]) / (time - before[0])
        self._pairs += 1

    def _length(self, before: np.ndarray, after: np.ndarray) -> float:
        """Mean length of flow, pixels; uint8 RGB [H, W, 3] each."""
        import cv2
        import numpy as np

        changed = (cv2.absdiff(cv2.blur(before, (5, 5)), cv2.blur(after, (5, 5))) > _CHANGED).any(axis=2)
        if not changed.any():
            return 0.0
        side = 2 * round(_NEAR * min(changed.shape)) + 1
        near = cv2.dilate(np.asarray(changed, np.uint8), np.ones((side, side), np.uint8))
        first, second = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
        flow = self._dis.calc(first, second, None)
        return float((np.sqrt((flow * flow).sum(axis=2)) * near).mean())

    def score(self) -> float | None:
        """Per cent of the short side a second; None where no pair of pictures was seen: unknown is not low."""
        return self._sum / self._pairs if self._pairs else None
