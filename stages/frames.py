"""From the bytes of a clip to the frames a vision tokenizer sees: one place, for training, extraction and evaluation.

A still is one frame. Which frames of a film, and how each is fitted, is a `View`; nothing else decides it, so what is
extracted is what was trained on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow
from stages import media

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class View:
    """How a clip is looked at."""

    size: int
    """Pixels: side of the square, or the root of the budget of pixels."""
    frames: int
    """Most frames of a film."""
    fps: float | None = None
    """Frames a second that are asked for; None: as many as `frames`, however long the film is."""
    cover: Literal["whole", "middle"] = "whole"
    """whole: the middles of equal parts of the film, so that none is cut off: a film that is longer than frames / fps
    is looked at more rarely. middle: at `fps` exactly, from the middle of the film; a shorter one as "whole"."""
    fit: Literal["square", "area"] = "square"
    """square: the short side scaled to `size`, the centre cut out. area: the film's own shape, as near to size * size
    pixels as multiples of the stride come without exceeding it."""

    def places(self, num_frames: int, fps: float, multiple: int = 1) -> list[int]:
        """Which of a film's frames, in order; a multiple of `multiple`, where the last is repeated if need be."""
        wanted = self.frames
        if self.fps is not None:
            wanted = min(wanted, max(1, round(num_frames / fps * self.fps)))
        wanted = max(multiple, wanted // multiple * multiple)
        if self.cover == "middle" and self.fps is not None and (wanted - 1) * fps / self.fps <= num_frames - 1:
            step = fps / self.fps
            first = (num_frames - 1 - (wanted - 1) * step) / 2
            return [min(num_frames - 1, round(first + place * step)) for place in range(wanted)]
        return [(2 * place + 1) * num_frames // (2 * wanted) for place in range(wanted)]

    def shape(self, width: int, height: int, stride: int) -> tuple[int, int]:
        """(height, width) that a picture is fitted to."""
        if self.fit == "square":
            return self.size, self.size
        budget = max(1, self.size // stride) ** 2
        scale = math.sqrt(budget / (width * height))
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        while rows * columns > budget:  # the side that was rounded up most gives way
            if columns == 1 or (rows > 1 and rows / height > columns / width):
                rows -= 1
            else:
                columns -= 1
        return rows * stride, columns * stride


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The frames of one clip."""

    pictures: NDArray[np.uint8]
    """(T, H, W, 3) of RGB."""
    fps: float | None
    """Frames a second that they stand for; None of a still."""


def prepare(
    source: bytes, source_kind: str, num_frames: int, fps: float, view: View, stride: tuple[int, int] = (1, 1)
) -> Seen:
    """What a view shows of a clip. `stride`: frames and pixels that the tokenizer asks multiples of.

    `num_frames` and `fps` are those that the clip is known to have. Raises BadRow where it does not decode, or to
    another number of frames. A still is one frame (the tokenizer repeats it where it must).
    """
    try:
        if source_kind == "image":
            return Seen(pictures=_fitted([media.opaque(media.loaded(source))], view, stride[1]), fps=None)
        places = view.places(num_frames, fps, stride[0])
        pictures = _fitted(_chosen(source, num_frames, places), view, stride[1])
    except BadRow as bad:
        raise BadRow(f"the clip cannot be decoded ({str(bad).rstrip('.')}); look at its source file") from bad
    span = places[-1] - places[0]
    return Seen(pictures=pictures, fps=fps * (len(places) - 1) / span if span else fps)


def to_png(picture: NDArray[np.uint8], scale: int = 1) -> bytes:
    """PNG of a picture (H, W, 3), each pixel drawn `scale` times."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture.repeat(scale, 0).repeat(scale, 1)).save(out, "png")
    return out.getvalue()


def mosaic(pictures: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """One picture (rows*H, columns*W, 3) of many (N, H, W, 3), row by row, black where none is left."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, h, w, 3), np.uint8)
    sheet[:n] = pictures
    return sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)


def _chosen(source: bytes, num_frames: int, places: Sequence[int]) -> list[Image]:
    """The frames at these places; the film is decoded to its end, so that a damaged one is never taken for whole."""
    from PIL import Image

    wanted, found, count = set(places), {}, 0
    with media.opened(source) as film:
        for frame in film.frames():
            if count in wanted:
                found[count] = Image.fromarray(media.picture(frame, *media.upright_size(frame)))
            count += 1
    if film.broken or not count:
        raise BadRow(film.broken or "none of its frames decodes")
    if count != num_frames:
        raise BadRow(f"it decodes to {count} frames, its row says {num_frames}")
    return [found[place] for place in places]


def _fitted(pictures: Sequence[Image], view: View, stride: int) -> NDArray[np.uint8]:
    """Scaled until both sides cover the shape (area averaging when shrinking), then cut to the centre."""
    from PIL import Image

    height, width = view.shape(*pictures[0].size, stride)
    fitted: list[NDArray[np.uint8]] = []
    for picture in pictures:
        scale = max(width / picture.width, height / picture.height)
        size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        scaled = picture.resize(size, Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        fitted.append(np.asarray(scaled, np.uint8)[top : top + height, left : left + width])
    return np.stack(fitted)
