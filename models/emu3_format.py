"""Emu3's token layout: build a sequence, parse it back, and say what may come at each place of an image.

    image block   boi, text "H*W", img, then h rows of w codes each followed by EOL (the last row too), EOF, eoi
    clip block    boi, text "T*H*W", img, then t such frames each ended by EOF, eoi
    generation    BOS, caption, block, EOS          understanding   BOS, block, caption, EOS
    text          BOS, text, EOS

Sizes are in token-grid units. Source: arXiv 2409.18869 and baaivision/Emu3 (emu3/mllm/processing_emu3.py,
emu3/mllm/utils_emu3.py); the clip block with its leading T is ours, since video code was never published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import Vocabulary

Grid = tuple[int, int, int]
"""Frames, rows, columns of codes."""

Order = Literal["generation", "understanding", "text"]


class TextTokenizer(Protocol):
    """What the layout needs of a text tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one sequence says: a caption and codes, or a text alone."""

    text: list[int]
    """Ids of the text or caption."""
    grid: Grid | None = None
    """(t, h, w), none for a text."""
    codes: NDArray[np.int64] | None = None
    """t*h*w visual codes in raster order."""
    order: Order = "text"


def size_text(grid: Grid) -> str:
    """The size as the model reads it: "H*W" for an image, "T*H*W" for a clip."""
    t, h, w = grid
    return f"{h}*{w}" if t == 1 else f"{t}*{h}*{w}"


def frame_tokens(grid: Grid) -> int:
    """Tokens of one frame: h*(w+1) + 1."""
    _, h, w = grid
    return h * (w + 1) + 1


def visual_block(grid: Grid, codes: NDArray[np.integer], vocabulary: Vocabulary, text: TextTokenizer) -> list[int]:
    """Token ids from boi to eoi for `codes` (t*h*w) in raster order."""
    t, h, w = grid
    rows = np.full((t, h, w + 1), vocabulary.eol, np.int64)
    rows[:, :, :w] = vocabulary.visual(codes).reshape(t, h, w)
    frames = np.full((t, frame_tokens(grid)), vocabulary.eof, np.int64)
    frames[:, :-1] = rows.reshape(t, -1)
    head = [vocabulary.boi, *text.encode(size_text(grid)), vocabulary.img]
    return [*head, *frames.ravel().tolist(), vocabulary.eoi]


def build(sample: Sample, vocabulary: Vocabulary, text: TextTokenizer) -> list[int]:
    """Token ids of a whole sequence, BOS to EOS."""
    if sample.grid is None or sample.codes is None:
        return [vocabulary.bos, *sample.text, vocabulary.eos]
    block = visual_block(sample.grid, sample.codes, vocabulary, text)
    if sample.order == "understanding":
        return [vocabulary.bos, *block, *sample.text, vocabulary.eos]
    return [vocabulary.bos, *sample.text, *block, vocabulary.eos]


def prompt(caption: list[int], grid: Grid, vocabulary: Vocabulary, text: TextTokenizer) -> list[int]:
    """What comes before the first visual code in generation order: BOS, caption, boi, size, img."""
    return [vocabulary.bos, *caption, vocabulary.boi, *text.encode(size_text(grid)), vocabulary.img]


def parse(tokens: list[int], vocabulary: Vocabulary, text: TextTokenizer) -> Sample:
    """The sample of a sequence; raises ValueError with the place where the layout is broken."""
    if len(tokens) < 2 or tokens[0] != vocabulary.bos or tokens[-1] != vocabulary.eos:
        raise ValueError("sequence does not begin with BOS and end with EOS")
    body = tokens[1:-1]
    if vocabulary.boi not in body:
        return Sample(text=_only_text(body, vocabulary))
    start = body.index(vocabulary.boi)
    if vocabulary.eoi not in body[start:]:
        raise ValueError(f"the vision block that starts at {start + 1} has no end")
    end = body.index(vocabulary.eoi, start)
    grid, codes = parse_block(body[start : end + 1], vocabulary, text)
    before, after = _only_text(body[:start], vocabulary), _only_text(body[end + 1 :], vocabulary)
    if before and after:
        raise ValueError("sequence has text on both sides of the vision block")
    order: Order = "understanding" if after else "generation"
    return Sample(text=before or after, grid=grid, codes=codes, order=order)


def parse_block(block: list[int], vocabulary: Vocabulary, text: TextTokenizer) -> tuple[Grid, NDArray[np.int64]]:
    """Grid and codes (t*h*w) of a block from boi to eoi."""
    if vocabulary.img not in block:
        raise ValueError("vision block has no start of tokens")
    split = block.index(vocabulary.img)
    said = text.decode(_only_text(block[1:split], vocabulary))
    sides = said.split("*")
    if len(sides) not in (2, 3) or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise ValueError(f"vision block says size {said!r}, which is neither H*W nor T*H*W")
    t, h, w = (1, *map(int, sides)) if len(sides) == 2 else map(int, sides)
    grid = (t, h, w)
    payload = np.asarray(block[split + 1 : -1], np.int64)
    if payload.size != t * frame_tokens(grid):
        raise ValueError(f"vision block of size {said} has {payload.size} tokens, not {t * frame_tokens(grid)}")
    frames = payload.reshape(t, frame_tokens(grid))
    rows = frames[:, :-1].reshape(t, h, w + 1)
    codes = vocabulary.codes(rows[:, :, :w])
    marks_stand = (frames[:, -1] == vocabulary.eof).all() and (rows[:, :, w] == vocabulary.eol).all()
    if not marks_stand or codes.min() < 0 or codes.max() >= vocabulary.codebook_size:
        raise ValueError(f"vision block of size {said} has a code where a mark must stand, or a mark for a code")
    return grid, codes.ravel()


def allowed(offset: int, grid: Grid, vocabulary: Vocabulary) -> int | None:
    """The one token that may stand `offset` places after img (first place: 1), None where any visual code may.

    Emu3 states it for one frame: o mod (w+1) = 0 gives EOL; (w+1)h+1 EOF; +2 eoi; +3 EOS; beyond PAD.
    """
    t, h, w = grid
    frame = frame_tokens(grid)
    past = offset - t * frame
    if past > 0:
        return {1: vocabulary.eoi, 2: vocabulary.eos}.get(past, vocabulary.pad)
    place = (offset - 1) % frame + 1
    if place == h * (w + 1) + 1:
        return vocabulary.eof
    return vocabulary.eol if place % (w + 1) == 0 else None


def _only_text(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    stray = next((token for token in tokens if not 0 <= token < vocabulary.text_size), None)
    if stray is not None:
        raise ValueError(f"token {stray} stands where text must")
    return tokens
