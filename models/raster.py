"""Pictures as rows of codes between marks: which token stands where, what may come where, and the way back.

    block   boi [, text of the size, img], then of every frame its rows of codes, eoi
    Emu3    EOL after every row, the last too, EOF after every frame, the size in words     Marks()
    Emu3.5  EOL between rows, no EOF                                                        Marks(rows="between", ...)
    Chameleon, LlamaGen, SimpleAR, Janus   codes alone                                      Marks(rows="none", ...)

The size is "H*W" in places of the grid, of a film "T*H*W" and, where known, its frames a second and seconds. Source:
arXiv 2409.18869 and baaivision/Emu3 (emu3/mllm/processing_emu3.py, utils_emu3.py), baaivision/Emu3.5 (src/utils).
Emu3's code for films was never published: its paper says that size, frame rate and duration stand there in words, the
wording and the leading T are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import Vocabulary

Grid = tuple[int, int, int]
"""Frames, rows, columns of codes."""

CODE = -1
"""In a template: any visual code."""


class TextTokenizer(Protocol):
    """What a layout needs of a text tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What stands among the codes."""

    rows: Literal["each", "between", "none"] = "each"
    """EOL after every row, between rows, or nowhere."""
    frames: bool = True
    """EOF after every frame."""
    size: bool = True
    """The size in words, and img, before the first code."""


def size_text(grid: Grid, fps: float | None = None, duration_s: float | None = None) -> str:
    """The size as the model reads it: "H*W" of a picture; of a film "T*H*W", its frames a second and its seconds."""
    t, h, w = grid
    if t == 1:
        return f"{h}*{w}"
    pace = "" if fps is None or duration_s is None else f" {fps:.3g}fps {duration_s:.3g}s"
    return f"{t}*{h}*{w}{pace}"


def template(grid: Grid, vocabulary: Vocabulary, marks: Marks) -> NDArray[np.int64]:
    """What stands at each place after the block's head and before eoi: a mark's id, or `CODE`."""
    t, h, w = grid
    rows = np.full((h, w + (marks.rows != "none")), vocabulary.eol, np.int64)
    rows[:, :w] = CODE
    frame = rows.ravel()
    if marks.rows == "between":
        frame = frame[:-1]
    if marks.frames:
        frame = np.append(frame, vocabulary.eof)
    return np.tile(frame, t)


def payload(grid: Grid, codes: NDArray[np.integer], vocabulary: Vocabulary, marks: Marks) -> NDArray[np.int64]:
    """The template with codes (t*h*w, in raster order) in it."""
    filled = template(grid, vocabulary, marks)
    filled[filled == CODE] = vocabulary.visual(codes)
    return filled


def head(size: str, vocabulary: Vocabulary, text: TextTokenizer, marks: Marks) -> list[int]:
    """How a block begins; the next token is its first code."""
    return [vocabulary.boi, *text.encode(size), vocabulary.img] if marks.size else [vocabulary.boi]


def allowed(offset: int, grid: Grid, vocabulary: Vocabulary, marks: Marks) -> int | None:
    """The one token that may stand `offset` places after the head (first place: 1), None where any visual code may.

    Emu3 states it for one frame: o mod (w+1) = 0 gives EOL; (w+1)h+1 EOF; +2 eoi; +3 EOS; beyond PAD.
    """
    places = template(grid, vocabulary, marks)
    if offset <= len(places):
        mark = int(places[offset - 1])
        return None if mark == CODE else mark
    return {1: vocabulary.eoi, 2: vocabulary.eos}.get(offset - len(places), vocabulary.pad)


def parse_block(
    block: list[int], vocabulary: Vocabulary, text: TextTokenizer, marks: Marks, grid: Grid | None = None
) -> tuple[Grid, NDArray[np.int64]]:
    """Grid and codes (t*h*w) of a block from boi to eoi; ValueError says where it is broken.

    Where the layout states no size it is taken as given, or else as that of a square picture.
    """
    first = 1
    if marks.size:
        if vocabulary.img not in block:
            raise ValueError("vision block has no start of tokens")
        first = block.index(vocabulary.img) + 1
        grid = _stated(text.decode(only_text(block[1 : first - 1], vocabulary)))
    found = np.asarray(block[first:-1], np.int64)
    if grid is None:
        side = round(int((vocabulary.modality(found) == 2).sum()) ** 0.5)
        grid = (1, side, side)
    wanted = template(grid, vocabulary, marks)
    if found.size != wanted.size:
        raise ValueError(f"vision block of size {size_text(grid)} has {found.size} tokens, not {wanted.size}")
    codes = vocabulary.codes(found[wanted == CODE])
    strays = (found != wanted)[wanted != CODE].any() or not ((codes >= 0) & (codes < vocabulary.codebook_size)).all()
    if strays or not codes.size:
        raise ValueError(
            f"vision block of size {size_text(grid)} has a code where a mark must stand, or a mark for a code"
        )
    return grid, codes


def only_text(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    """The tokens, all of which must be text; ValueError names the first that is not."""
    stray = next((token for token in tokens if not 0 <= token < vocabulary.text_size), None)
    if stray is not None:
        raise ValueError(f"token {stray} stands where text must")
    return tokens


def _stated(said: str) -> Grid:
    sides = said.partition(" ")[0].split("*")
    if len(sides) not in (2, 3) or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise ValueError(f"vision block says size {said!r}, which is neither H*W nor T*H*W")
    t, h, w = (1, *map(int, sides)) if len(sides) == 2 else map(int, sides)
    return t, h, w
