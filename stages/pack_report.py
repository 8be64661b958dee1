"""A picture of packs: one strip each, coloured by what stands where. Not a stage. Numbers: stages/packing.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.layout import KINDS
from stages import frames
from stages.base import Row

_STRIPS = 48
"""Packs in the picture."""
_PIXELS = 768
_HEIGHT = 8
_COLOURS = {
    "text": (92, 122, 171),
    "marks": (150, 150, 150),
    "codes": (221, 143, 66),
    "scale": (221, 143, 66),
    "latents": (96, 160, 94),
    "features": (160, 110, 160),
}


@dataclass(frozen=True)
class Strip:
    """One pack: its order, and where its segments end."""

    order: int
    ends: np.ndarray
    kinds: list[int]
    documents: list[int]


def with_strip(strips: list[Strip], row: Row) -> list[Strip]:
    """The strips of the packs that come first in training, with this one if it is among them."""
    if len(strips) >= _STRIPS and row["order"] > strips[-1].order:
        return strips
    segments = row["segments"]
    ends = np.cumsum([s["len"] for s in segments])
    strip = Strip(row["order"], ends, [s["kind"] for s in segments], [s["document"] for s in segments])
    return sorted([*strips, strip], key=lambda one: one.order)[:_STRIPS]


def strips(packs: list[Strip]) -> bytes:
    """PNG: text blue, marks grey, codes orange (scales lighter as they get coarser), latents green, features violet; a
    white line between documents; right end: the longest pack."""
    longest = max(int(pack.ends[-1]) for pack in packs)
    sheet = np.full((len(packs) * _HEIGHT, _PIXELS, 3), 255, np.uint8)
    for row, pack in enumerate(packs):
        edges = np.concatenate([[0], pack.ends]) * _PIXELS // longest
        lines = slice(row * _HEIGHT, row * _HEIGHT + _HEIGHT - 1)
        for number, kind in enumerate(pack.kinds):
            left, right = int(edges[number]), int(edges[number + 1])
            colour = np.array(_COLOURS[KINDS[kind]])
            if KINDS[kind] == "scale":
                colour = colour + (255 - colour) * (number % 2) // 3
            sheet[lines, left:right] = colour
            last = number + 1 == len(pack.kinds) or pack.documents[number + 1] != pack.documents[number]
            if last and right > left + 1:
                sheet[lines, right - 1] = 255
    return frames.to_png(sheet)
