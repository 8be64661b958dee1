"""The captioner without weights, as the stages ask it: pixels.py says it, the text reader reads where it matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages import reading
from stages.base import BadRow
from stages.caption import pixels
from stages.caption.asking import Shown


class Pixels:
    """Describes what can be measured, the same every time."""

    short_side = pixels.SHORT_SIDE

    def __init__(self, changes: bool) -> None:
        self._changes = changes
        self._ocr: Any = None  # most clips are never read, so the models are loaded for the first that is

    def captions(self, shown: Sequence[Shown | BadRow]) -> list[str | BadRow]:
        """One sentence per clip, or per change."""
        said = self._changed if self._changes else self._described
        return [one if isinstance(one, BadRow) else said(one) for one in shown]

    def _described(self, one: Shown) -> str | BadRow:
        try:
            return pixels.caption(one.pictures, lambda: self._read(one))
        except BadRow as bad:
            return bad

    def _read(self, one: Shown) -> str:
        self._ocr = self._ocr or reading.engine()
        return reading.text(self._ocr, one.middle())

    def _changed(self, one: Shown) -> str:
        before, after = (pixels.caption([picture]) for picture in (one.pictures[0], one.pictures[-1]))
        whole = pixels.caption(list(one.pictures))
        return f"{before} becomes {after}" if before != after else f"{before} stays: {whole}"
