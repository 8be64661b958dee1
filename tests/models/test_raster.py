"""Emu3's layout: round trip, closed-form counts, constrained decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import emu3_format as emu3
from models.emu3_format import Sample
from models.flops import TrunkShape
from models.generate import generate_images
from models.tokenizers.text import ByteTokenizer
from models.trunk import Trunk, TrunkConfig
from models.vocabulary import EMU3, SPECIAL, TEXT, VISION, Vocabulary

TEXT_TOKENIZER = ByteTokenizer()
SMALL = Vocabulary.compact(256, 16)
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@st.composite
def samples(draw) -> Sample:
    words = TEXT_TOKENIZER.encode(draw(st.text(max_size=20)))
    if draw(st.booleans()):
        return Sample(text=words)
    grid = draw(GRIDS)
    codes = np.random.default_rng(draw(st.integers(0, 99))).integers(16, size=grid[0] * grid[1] * grid[2])
    order = draw(st.sampled_from(["generation", "understanding"])) if words else "generation"
    return Sample(text=words, grid=grid, codes=codes, order=order)


@settings(deadline=None)
@given(samples(), st.sampled_from([SMALL, EMU3]))
def test_what_is_built_parses_back(sample: Sample, vocabulary: Vocabulary) -> None:
    tokens = emu3.build(sample, vocabulary, TEXT_TOKENIZER)
    again = emu3.parse(tokens, vocabulary, TEXT_TOKENIZER)
    assert (again.text, again.grid, again.order) == (sample.text, sample.grid, sample.order)
    assert (sample.codes is None) == (again.codes is None)
    if sample.codes is not None:
        assert again.codes.tolist() == sample.codes.tolist()


def test_published_counts_and_ids() -> None:
    assert EMU3.size == 184_622
    assert emu3.frame_tokens((1, 64, 64)) == 4161
    assert emu3.frame_tokens((1, 90, 90)) == 8191
    block = emu3.visual_block((1, 64, 64), np.zeros(4096, int), EMU3, TEXT_TOKENIZER)
    assert len(block) == 4169
    assert block[0] == 151_852 and block[6] == 151_851 and block[7] == 151_854
    assert block[7 + 64] == 151_846 and block[-3:] == [151_846, 151_847, 151_853]


def test_layout_by_hand() -> None:
    v = Vocabulary.compact(256, 16)
    tokens = emu3.build(Sample(text=[65], grid=(2, 1, 2), codes=np.arange(4), order="understanding"), v, TEXT_TOKENIZER)
    o = v.visual_offset
    frames = [o, o + 1, v.eol, v.eof, o + 2, o + 3, v.eol, v.eof]
    assert tokens == [v.bos, v.boi, *b"2*1*2", v.img, *frames, v.eoi, 65, v.eos]


@settings(deadline=None)
@given(GRIDS)
def test_allowed_names_exactly_the_marks_of_the_layout(grid: tuple[int, int, int]) -> None:
    codes = np.zeros(grid[0] * grid[1] * grid[2], int)
    tokens = emu3.build(Sample(text=[], grid=grid, codes=codes, order="generation"), SMALL, TEXT_TOKENIZER)
    start = tokens.index(SMALL.img)
    for place in range(start + 1, len(tokens)):
        mark = emu3.allowed(place - start, grid, SMALL)
        assert tokens[place] == (SMALL.visual_offset if mark is None else mark)
    assert emu3.allowed(len(tokens) - start, grid, SMALL) == SMALL.pad


@pytest.mark.parametrize("broken", ["code for a mark", "mark for a code", "short", "size", "no end"])
def test_broken_layouts_are_refused(broken: str) -> None:
    sample = Sample(text=[66], grid=(1, 2, 2), codes=np.arange(4), order="generation")
    tokens = emu3.build(sample, SMALL, TEXT_TOKENIZER)
    first = tokens.index(SMALL.img) + 1
    if broken == "code for a mark":
        tokens[first + 2] = SMALL.visual_offset
    elif broken == "mark for a code":
        tokens[first] = SMALL.eol
    elif broken == "short":
        del tokens[first]
    elif broken == "size":
        tokens[first - 2] = ord("x")
    else:
        tokens.remove(SMALL.eoi)
    with pytest.raises(ValueError):
        emu3.parse(tokens, SMALL, TEXT_TOKENIZER)


def test_vocabulary_ranges_and_json() -> None:
    assert Vocabulary.from_json(SMALL.to_json()) == SMALL
    assert SMALL.modality(np.array([0, 255, 256, 263, 264, 279])).tolist() == [
        TEXT, TEXT, SPECIAL, SPECIAL, VISION, VISION,
    ]  # fmt: skip


def test_generated_images_parse_whatever_the_logits_and_caching_changes_nothing() -> None:
    shape = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
    trunk = Trunk(TrunkConfig(shape=shape, vocabulary_size=SMALL.size)).initialise(0).double().eval()
    grid, captions = (2, 3, 2), ["a", "a much longer one"]
    prompts = [emu3.prompt(TEXT_TOKENIZER.encode(c), grid, SMALL, TEXT_TOKENIZER) for c in captions]
    codes = generate_images(trunk, SMALL, prompts, grid, temperature=0.0)
    for caption, prompt, ids in zip(captions, prompts, codes.numpy(), strict=True):
        words = TEXT_TOKENIZER.encode(caption)
        tokens = emu3.build(Sample(text=words, grid=grid, codes=ids, order="generation"), SMALL, TEXT_TOKENIZER)
        assert emu3.parse(tokens, SMALL, TEXT_TOKENIZER).text == words
        from models.attention import DocumentAttention

        with torch.no_grad():
            T = len(tokens)
            hidden = trunk(trunk.embedding(torch.tensor([tokens])), torch.arange(T)[None], DocumentAttention([T]))[0]
        logits = (hidden @ trunk.head.weight.T)[:, SMALL.visual_offset :]
        at = [p for p in range(len(prompt), T) if tokens[p] >= SMALL.visual_offset]
        assert [int(logits[p - 1].argmax()) for p in at] == ids.tolist()
