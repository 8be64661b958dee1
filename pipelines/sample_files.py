"""The files of samples: pictures that are rewritten as they grow, films, a sheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seen = Callable[[Sequence[str], NDArray[np.uint8]], None]
"""Names of files, and what there is of their pictures (N, H, W, 3)."""
_SHEET_COLUMNS = 8


def written(path: Path, data: bytes) -> str:
    """Write a file in one go, so that who looks at it sees a whole one; its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)
    return path.name


def write_film(place: Path, frames: NDArray[np.uint8], fps: float) -> list[str]:
    """MP4 (H.264) and GIF of frames (T, H, W, 3); their names. An odd side of the MP4 loses its last pixel."""
    import av
    from PIL import Image

    path = place.with_suffix(".mp4")
    even = np.ascontiguousarray(frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2])
    with av.open(str(path), "w") as film:
        stream: Any = film.add_stream("libx264", rate=max(1, round(fps)))
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        for picture in even:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    first, *others = [Image.fromarray(picture) for picture in frames]
    gif = place.with_suffix(".gif")
    first.save(gif, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return [path.name, gif.name]


def write_sheet(path: Path, pictures: Sequence[NDArray[np.uint8]]) -> str:
    """All pictures of the size of the first in rows of eight; the name of the file."""
    from stages.frames import mosaic, to_png

    alike = np.stack([one for one in pictures if one.shape == pictures[0].shape])
    return written(path, to_png(mosaic(alike, min(_SHEET_COLUMNS, len(alike)))))


def half_blocks(picture: NDArray[np.uint8], columns: int = 48) -> Any:
    """A picture (H, W, 3) for the terminal: a character shows two pixels, one above the other, by its two colours."""
    from PIL import Image
    from rich.text import Text

    width = min(columns, picture.shape[1])
    height = max(2, round(picture.shape[0] * width / picture.shape[1]) // 2 * 2)
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
    shown = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for (a, b, c), (d, e, f) in zip(upper.tolist(), lower.tolist(), strict=True):
            shown.append("\u2580", f"rgb({a},{b},{c}) on rgb({d},{e},{f})")
        shown.append("\n")
    return shown
