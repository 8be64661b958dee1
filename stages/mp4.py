"""One clip on its way to an mp4 in memory. Not a stage."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

from stages import media

if TYPE_CHECKING:
    import av

_THREADS = 2
"""Encoder threads. x264 gives the same bytes from run to run for a given number, and others for another number."""


class Mp4:
    """One clip on its way to an mp4 in memory: x264, no B-frames, so that time stamps start at 0.

    Macroblock trees are off: with them the x264 in PyAV 18.1 gives other bytes from run to run.
    """

    def __init__(
        self, source: media.Film, aspect: Fraction, rate: Fraction, short_side: int, options: dict[str, str]
    ) -> None:
        import av

        self._aspect, self._short_side, self._source = aspect, short_side, source
        self._tick = source.stream.time_base or 1 / rate
        self._rate = rate
        self._bytes = io.BytesIO()
        self._container = av.open(self._bytes, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.codec_context.thread_count = _THREADS
        self._stream.codec_context.time_base = self._tick
        self._stream.options = {"bf": "0", "x264-params": "mbtree=0:log-level=none", **options}
        self._first: int | None = None
        self._last = -1
        self._size = (0, 0)

    def add(self, frame: av.VideoFrame) -> float:
        """Encode a frame; its time in the source, s."""
        stamp = self._source.ticks(frame)
        pts = stamp if stamp is not None else (self._first or 0) + self._last + 1
        if self._first is None:
            self._first = pts
            self._size = self._target(frame)
            self._stream.width, self._stream.height = (side + side % 2 for side in self._size)
            self._stream.pix_fmt = "yuv420p"
        ready = self._prepared(frame)
        self._last = max(pts - self._first, self._last + 1)
        ready.pts, ready.time_base = self._last, self._tick
        self._container.mux(self._stream.encode(ready))
        return float(pts * self._tick)

    def _target(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width * self._aspect, Fraction(frame.height)
        upright = (height, width) if media.quarter_turns(frame) % 2 else (width, height)
        return media.fitted(round(upright[0]), round(upright[1]), self._short_side)

    def _prepared(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame at the clip's size: untouched planes where nothing has to change."""
        import av
        import numpy as np
        from av.video.reformatter import Interpolation

        width, height = self._size
        plain = not media.quarter_turns(frame) and not width % 2 and not height % 2
        if plain:
            return frame.reformat(width=width, height=height, format="yuv420p", interpolation=Interpolation.AREA)
        image = media.picture(frame, width, height)
        return av.VideoFrame.from_ndarray(
            np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"), "rgb24"
        )

    def finished(self) -> tuple[int, int, bytes]:
        """Width, height and bytes of the mp4."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._stream.width, self._stream.height, self._bytes.getvalue()
