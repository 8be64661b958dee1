"""Where a film is cut: PySceneDetect's two detectors over pictures that cost a fraction of its own. Not a stage.

PySceneDetect turns each frame into BGR, shrinks it to 256 pixels of width by sampling, and sums differences in numpy:
together two to three times the price of decoding. Here the planes of Y, U and V are sampled first, and only what is
left is converted; the sums are OpenCV's. Sampling and conversion are linear, so they may change places: the scores
are those of PySceneDetect but for rounding (tests/stages/test_clip.py says how much); its own code makes cuts of them.
Sampling is also what its thresholds were tuned on; averaging would hide noise that they reckon with, and swscale
shrinking by itself leaves colour noise in black pictures, whose random hue is taken for cuts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from stages import media

if TYPE_CHECKING:
    import av
    import numpy as np

_WIDTH = 256
"""PySceneDetect's own working width (DEFAULT_MIN_WIDTH): its thresholds were tuned there."""
_PLANAR = re.compile(r"yuv(a|j)?4\d\dp(1[0-6]le)?")
_FULL_RANGE = 2
_LUMA_OF_RED_AND_BLUE = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
"""By AVColorSpace: BT.709 and BT.2020; all else is taken for BT.601, as FFmpeg does."""


@dataclass
class Changes:
    """What the detectors look at, a number per decoded frame, 0 to 255."""

    content: list[float] = field(default_factory=list)
    """Mean absolute change of hue, saturation and value since the frame before; 0 for the first."""
    light: list[float] = field(default_factory=list)
    """Mean of red, green and blue."""


def changes(film: media.Film) -> Changes:
    """Decode a film to its end and measure each frame."""
    import cv2

    seen, before, size = Changes(), None, None
    for frame in film.frames():
        size = size or _working_size(frame)
        image = _sampled(frame, size)
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        seen.content.append(0.0 if before is None else cv2.norm(hsv, before, cv2.NORM_L1) / hsv.size)
        seen.light.append(sum(cv2.sumElems(image)) / image.size)
        before = hsv
    return seen


def cuts(seen: Changes, rate: Fraction, apart: int, threshold: float, fade_threshold: float) -> list[int]:
    """First frames of the scenes after the first. `rate` in 1/s, `apart` in frames, PySceneDetect's thresholds."""
    hard, soft = hard_cuts(seen, rate, apart, threshold), fades(seen, rate, apart, fade_threshold)
    return merged(hard, soft, apart, len(seen.light))


def hard_cuts(seen: Changes, rate: Fraction, apart: int, threshold: float) -> list[int]:
    """Those of PySceneDetect's content detector, which does no more with its scores than this."""
    from scenedetect import FrameTimecode
    from scenedetect.detector import FlashFilter

    merging = FlashFilter(mode=FlashFilter.Mode.MERGE, length=apart)
    stamped = ((FrameTimecode(index, rate), score >= threshold) for index, score in enumerate(seen.content))
    return [cut.frame_num for now, high in stamped for cut in merging.filter(now, high)]


def fades(seen: Changes, rate: Fraction, apart: int, threshold: float) -> list[tuple[int, int, int]]:
    """Those of PySceneDetect's threshold detector: (frame where it became dark, cut, frame where it became light).

    Its cut is half-way, which is off where one scene is brighter than the other and so is dark for a shorter time. Here
    it is at the centre of the darkness, each frame weighing what it is below the threshold. Where the film begins in
    the dark there is no scene before, and half-way stands.
    """
    import numpy as np
    from scenedetect import FrameTimecode, ThresholdDetector

    detector = ThresholdDetector(threshold=threshold, min_scene_len=apart)
    found: list[tuple[int, int, int]] = []
    for index, light in enumerate(seen.light):
        # The detector asks for the mean of a picture and for nothing else: the mean itself is such a picture.
        for cut in detector.process_frame(FrameTimecode(index, rate), np.array([light])):
            dark = max(0, 2 * cut.frame_num - index)  # the cut is half-way
            centre = dark + _centre(threshold - np.array(seen.light[dark:index])) if dark else cut.frame_num
            found.append((dark, centre, index))
    return found


def _centre(weights: np.ndarray) -> int:
    """The place between two frames, named by the later, at which the weights balance."""
    import numpy as np

    weights = weights.clip(min=1e-9)
    return round(float((weights * np.arange(len(weights))).sum() / weights.sum()) + 0.5)


def _working_size(frame: av.VideoFrame) -> tuple[int, int]:
    """What PySceneDetect shrinks to, as stored: 256 pixels of upright width, smaller frames as they are."""
    scale = max(1.0, media.upright_size(frame)[0] / _WIDTH)
    return max(1, round(frame.width / scale)), max(1, round(frame.height / scale))


def _sampled(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The frame as uint8 BGR [H, W, 3] of `size`, as stored: its scores are the same whichever way is up."""
    import cv2
    import numpy as np

    if not _PLANAR.fullmatch(frame.format.name) or any(plane.line_size < 0 for plane in frame.planes):
        return cv2.resize(frame.to_ndarray(format="bgr24"), size)
    stored: list[Any] = [np.from_dlpack(plane) for plane in frame.planes[:3]]
    planes = [cv2.resize(plane, size) for plane in stored]
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
    depth = frame.format.components[0].bits
    mixed = cv2.transform(cv2.merge(planes), _to_bgr(int(frame.colorspace), full, depth))
    return mixed if depth == 8 else cv2.convertScaleAbs(mixed, alpha=0.5 ** (depth - 8))


@cache
def _to_bgr(colorspace: int, full: bool, depth: int) -> np.ndarray:
    """The matrix [3, 4] from (Y, U, V, 1) to B, G, R, all of `depth` bits (ITU-T H.273, 8.3)."""
    import numpy as np

    red, blue = _LUMA_OF_RED_AND_BLUE.get(colorspace, (0.299, 0.114))
    green = 1 - red - blue
    one = 2.0 ** (depth - 8)
    top = 2.0**depth - 1
    black, luma, chroma = (0.0, 1.0, 2.0) if full else (16 * one, top / (219 * one), 2 * top / (224 * one))
    u, v = chroma * (1 - blue), chroma * (1 - red)
    linear = np.array([[luma, u, 0.0], [luma, -u * blue / green, -v * red / green], [luma, 0.0, v]])
    # Multiples of 2 ** -10 add up without rounding: what is grey stays grey, and grey has no hue to change.
    linear = np.round(linear * 1024) / 1024
    # Rounded down, as swscale does: half a level matters to a frame at the threshold of black.
    shift = -linear @ np.array([black, 128 * one, 128 * one]) - 511 / 1024
    return np.column_stack([linear, shift]).astype(np.float32)


def merged(hard: list[int], soft: list[tuple[int, int, int]], apart: int, count: int) -> list[int]:
    """The union of both detectors' cuts: a fade's cut yields to hard cuts and to the ends of the film.

    Hard cuts are exact and stand as PySceneDetect spaced them. A dark stretch that begins or ends with a hard cut
    (two frames' grace: the cut in the middle is rounded) is a dark scene where it is long, and the cut itself
    where it is short, so its middle is no cut.
    """
    found = {cut for cut in hard if 0 < cut < count}
    for dark, cut, light in soft:
        near_edge = any(abs(edge - sharp) <= 2 for edge in (dark, light) for sharp in hard)
        near_other = any(abs(cut - other) < apart for other in (0, count, *found))
        if not near_edge and not near_other:
            found.add(cut)
    return sorted(found)
