"""From the bytes of a clip to the frames a vision tokenizer sees: one place, for training and for extraction.

A still is one frame. A video clip is `frames` frames, the middles of that many equal parts of its *decoded* length.
Every frame is scaled so that its short side is `size` (area averaging when shrinking), then cut to the centre.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow
from stages import media

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare(source: bytes, source_kind: str, frames: int, size: int) -> NDArray[np.uint8]:
    """Frames (T, size, size, 3) of RGB, 0 to 255; T is 1 for a still. Raises BadRow where it does not decode."""
    try:
        pictures = [_still(source)] if source_kind == "image" else _sampled(source, frames)
    except BadRow as bad:
        raise BadRow(f"the clip cannot be decoded ({str(bad).rstrip('.')}); look at its source file") from bad
    return np.stack([_square(picture, size) for picture in pictures])


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


def _still(source: bytes) -> Image:
    return media.opaque(media.loaded(source))


def _sampled(source: bytes, frames: int) -> list[Image]:
    from PIL import Image

    with media.opened(source) as film:
        decoded = list(film.frames())
    if film.broken or not decoded:
        raise BadRow(film.broken or "none of its frames decodes")
    chosen = [decoded[(2 * place + 1) * len(decoded) // (2 * frames)] for place in range(frames)]
    return [Image.fromarray(media.picture(frame, *media.upright_size(frame))) for frame in chosen]


def _square(picture: Image, size: int) -> NDArray[np.uint8]:
    from PIL import Image

    short = min(picture.size)
    width, height = (max(size, round(side * size / short)) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.BOX if short >= size else Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(scaled, np.uint8)[top : top + size, left : left + size]
