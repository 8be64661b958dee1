"""One range of ids for every modality: text first, then special tokens, then visual codes.

    [0, text_size)                                    text
    eight specials, anywhere outside the others       begin, end, pad, vision's start, tokens, end, end of line, frame
    [visual_offset, visual_offset + codebook_size)    visual code k is visual_offset + k

`EMU3` is the published layout (baaivision/Emu3, emu3/mllm/tokenization_emu3.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXT, SPECIAL, VISION = 0, 1, 2
"""Modality of a token."""

_NUM_SPECIALS = 8


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Where each kind of token lies, and which tokenizers gave them."""

    text_size: int
    """Ids below it are text."""
    codebook_size: int
    """Number of visual codes."""
    bos: int
    eos: int
    pad: int
    boi: int
    """Start of vision; the size text follows."""
    img: int
    """Start of visual tokens."""
    eoi: int
    """End of vision."""
    eol: int
    """End of a row of codes."""
    eof: int
    """End of a frame."""
    visual_offset: int
    """Id of visual code 0."""
    text_digest: str = ""
    """Digest of the text tokenizer."""
    vision_digest: str = ""
    """Digest of the vision tokenizer."""

    @classmethod
    def compact(cls, text_size: int, codebook_size: int, **tokenizers: Any) -> Vocabulary:
        """Text, then the eight specials, then visual codes, with no gap; `tokenizers`: their digests."""
        names = ("bos", "eos", "pad", "boi", "img", "eoi", "eol", "eof")
        specials = {name: text_size + place for place, name in enumerate(names)}
        return cls(
            text_size=text_size,
            codebook_size=codebook_size,
            visual_offset=text_size + _NUM_SPECIALS,
            **specials,
            **tokenizers,
        )

    @property
    def size(self) -> int:
        """V, rows of the embedding and of the head."""
        return self.visual_offset + self.codebook_size

    def visual(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Token ids of visual codes."""
        return np.asarray(codes, np.int64) + self.visual_offset

    def codes(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """Visual codes of token ids."""
        return np.asarray(tokens, np.int64) - self.visual_offset

    def modality(self, tokens: NDArray[np.integer]) -> NDArray[np.int8]:
        """TEXT, SPECIAL or VISION for every id."""
        tokens = np.asarray(tokens)
        kinds = np.full(tokens.shape, SPECIAL, np.int8)
        kinds[tokens < self.text_size] = TEXT
        kinds[(tokens >= self.visual_offset) & (tokens < self.size)] = VISION
        return kinds

    def to_json(self) -> str:
        """One line, keys sorted: equal vocabularies give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


EMU3 = Vocabulary(
    text_size=151_643,
    codebook_size=32_768,
    bos=151_849,
    eos=151_850,
    pad=151_643,
    boi=151_852,
    img=151_851,
    eoi=151_853,
    eol=151_846,
    eof=151_847,
    visual_offset=151_854,
)
"""Ids of the published model; 184,622 in all."""
