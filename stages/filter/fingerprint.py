"""What a picture looks like in 56 bytes: the perceptual hash of ImageHash and coarse colours, borders cut first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_PLAIN = 10.0
"""Spread of levels (of 255) under which a row or column is border; a picture without more has no hash: that of a plain
one is made of noise, and all plain pictures would be each other's copies."""
_LEAST = 1 / 3
"""Share of a side that must be left when borders are cut."""


_GRID = 4
SIZE_BYTES = 8 + 3 * _GRID * _GRID


def fingerprint(picture: np.ndarray) -> bytes | None:
    """56 bytes for uint8 RGB [H, W, 3]: 64 bits of hash, then the mean colours of a grid of 4 x 4, a byte a channel.

    None where there is nothing to see. Grey or black bars are cut first: they keep a letterboxed copy from its
    original (tests). Copies in other sizes, codecs and contrasts differ in at most 10 bits, mirrored and turned ones
    in more. The hash is blind for colour and takes one plain drawing for the other: the colours tell them apart.
    """
    import cv2
    import imagehash
    import numpy as np
    from PIL import Image

    inside = without_borders(picture)
    if inside is None:
        return None
    bits = np.packbits(imagehash.phash(Image.fromarray(inside)).hash.ravel())
    return bits.tobytes() + cv2.resize(inside, (_GRID, _GRID), interpolation=cv2.INTER_AREA).tobytes()


def without_borders(picture: np.ndarray) -> np.ndarray | None:
    """The picture without plain rows and columns around it; None where nearly all of it is plain."""
    import numpy as np

    rows = np.flatnonzero(picture.std(axis=1).max(axis=1) > _PLAIN)
    columns = np.flatnonzero(picture.std(axis=0).max(axis=1) > _PLAIN)
    if not len(rows) or not len(columns):
        return None
    height, width = picture.shape[:2]
    if len(rows) < _LEAST * height or len(columns) < _LEAST * width:
        return picture
    return np.ascontiguousarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
