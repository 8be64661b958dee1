"""Rows of codes between marks: round trip, closed-form counts, constrained drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import raster
from models.any_to_any import AnyToAny
from models.attention import DocumentAttention
from models.flops import TrunkShape
from models.generate.choosing import Chance, Sampling, last
from models.generate.codes import code_rows
from models.layout import Format, Layout, Picture, document, opened
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.text import ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import EMU3, SPECIAL, TEXT, VISION, Vocabulary

TEXT_TOKENIZER = ByteTokenizer()
SMALL = Vocabulary.compact(256, 16)
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
EMU3_5 = Marks(rows="between", frames=False)
PLAIN = Marks(rows="none", frames=False, size=False)
ALL_MARKS = (Marks(), EMU3_5, PLAIN)


def format_of(marks: Marks, vocabulary: Vocabulary = SMALL) -> Format:
    return Format(layout=Layout(vision="codes", marks=marks), vocabulary=vocabulary)


def tokens_of(parts, marks: Marks, vocabulary: Vocabulary = SMALL) -> list[int]:
    return document(parts, format_of(marks, vocabulary), TEXT_TOKENIZER).joined()[0].tolist()


def picture(grid, seed: int = 0, **kwargs) -> Picture:
    codes = np.random.default_rng(seed).integers(16, size=grid[0] * grid[1] * grid[2])
    return Picture(grids=(grid,), ids=codes, **kwargs)


@settings(deadline=None)
@given(GRIDS, st.text(max_size=20), st.sampled_from(ALL_MARKS), st.sampled_from([SMALL, EMU3]), st.booleans())
def test_what_is_built_parses_back(grid, words: str, marks: Marks, vocabulary: Vocabulary, read: bool) -> None:
    shown, ids = picture(grid), TEXT_TOKENIZER.encode(words)
    tokens = tokens_of([shown, ids] if read else [ids, shown], marks, vocabulary)
    start, end = tokens.index(vocabulary.boi), tokens.index(vocabulary.eoi)
    found = raster.parse_block(tokens[start : end + 1], vocabulary, TEXT_TOKENIZER, marks, grid)
    assert found[0] == grid and found[1].tolist() == shown.ids.tolist()
    assert (tokens[end + 1 : -1] if read else tokens[1:start]) == ids
    assert (tokens[0], tokens[-1]) == (vocabulary.bos, vocabulary.eos)


def test_published_counts_and_ids() -> None:
    assert EMU3.size == 184_622
    assert len(raster.template((1, 64, 64), EMU3, Marks())) == 4161
    assert len(raster.template((1, 90, 90), EMU3, Marks())) == 8191
    block = tokens_of([Picture(grids=((1, 64, 64),), ids=np.zeros(4096, int))], Marks(), EMU3)[1:-1]
    assert len(block) == 4169
    assert block[0] == 151_852 and block[6] == 151_851 and block[7] == 151_854
    assert block[7 + 64] == 151_846 and block[-3:] == [151_846, 151_847, 151_853]
    assert len(raster.template((1, 64, 64), EMU3, EMU3_5)) == 64 * 64 + 63
    assert len(raster.template((1, 32, 32), EMU3, PLAIN)) == 1024


def test_layout_by_hand() -> None:
    v = SMALL
    tokens = tokens_of([Picture(grids=((2, 1, 2),), ids=np.arange(4), fps=12.0, duration_s=0.5), [65]], Marks())
    o = v.visual_offset
    frames = [o, o + 1, v.eol, v.eof, o + 2, o + 3, v.eol, v.eof]
    assert tokens == [v.bos, v.boi, *b"2*1*2 12fps 0.5s", v.img, *frames, v.eoi, 65, v.eos]
    between = tokens_of([Picture(grids=((1, 2, 1),), ids=np.arange(2))], EMU3_5)
    assert between == [v.bos, v.boi, *b"2*1", v.img, o, v.eol, o + 1, v.eoi, v.eos]


@settings(deadline=None)
@given(GRIDS, st.sampled_from(ALL_MARKS))
def test_allowed_names_exactly_the_marks_of_the_layout(grid: tuple[int, int, int], marks: Marks) -> None:
    tokens = tokens_of([Picture(grids=(grid,), ids=np.zeros(grid[0] * grid[1] * grid[2], int))], marks)
    start = tokens.index(SMALL.img if marks.size else SMALL.boi)
    for place in range(start + 1, len(tokens)):
        mark = raster.allowed(place - start, grid, SMALL, marks)
        assert tokens[place] == (SMALL.visual_offset if mark is None else mark)
    assert raster.allowed(len(tokens) - start, grid, SMALL, marks) == SMALL.pad


@pytest.mark.parametrize("broken", ["code for a mark", "mark for a code", "short", "size"])
def test_broken_layouts_are_refused(broken: str) -> None:
    tokens = tokens_of([Picture(grids=((1, 2, 2),), ids=np.arange(4))], Marks())[1:-1]
    first = tokens.index(SMALL.img) + 1
    if broken == "code for a mark":
        tokens[first + 2] = SMALL.visual_offset
    elif broken == "mark for a code":
        tokens[first] = SMALL.eol
    elif broken == "short":
        del tokens[first]
    else:
        tokens[first - 2] = ord("x")
    with pytest.raises(ValueError):
        raster.parse_block(tokens, SMALL, TEXT_TOKENIZER, Marks())


def test_vocabulary_ranges_and_json() -> None:
    assert Vocabulary.from_json(SMALL.to_json()) == SMALL
    assert SMALL.modality(np.array([0, 255, 256, 263, 264, 279])).tolist() == [
        TEXT, TEXT, SPECIAL, SPECIAL, VISION, VISION,
    ]  # fmt: skip


@pytest.mark.parametrize("marks", ALL_MARKS)
def test_drawn_pictures_parse_whatever_the_logits_and_caching_changes_nothing(marks: Marks) -> None:
    shape = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
    form = format_of(marks)
    model = AnyToAny(TrunkConfig(shape=shape, vocabulary_size=SMALL.size), Parts(), form).initialise(0).double().eval()
    grid, captions = (2, 3, 2), ["a", "a much longer one"]
    size = raster.size_text(grid)
    prompts = [opened([TEXT_TOKENIZER.encode(c)], size, form, TEXT_TOKENIZER) for c in captions]
    codes = last(code_rows(model, prompts, grid, Sampling(temperature=0.0), Chance([0, 1])))
    for caption, one, ids in zip(captions, prompts, codes.numpy(), strict=True):
        before = one.joined()[0].tolist()
        tokens = tokens_of([TEXT_TOKENIZER.encode(caption), Picture(grids=(grid,), ids=ids)], marks)
        assert tokens[: len(before)] == before
        block = tokens[tokens.index(SMALL.boi) : -1]
        assert raster.parse_block(block, SMALL, TEXT_TOKENIZER, marks, grid)[1].tolist() == ids.tolist()
        with torch.no_grad():
            T = len(tokens)
            x = model.embed(torch.tensor([tokens]))
            hidden = model.trunk(x, torch.arange(T)[None], DocumentAttention([T]))[0]
        logits = model.code_logits(hidden)
        at = [p for p in range(len(before), T) if tokens[p] >= SMALL.visual_offset]
        assert [int(logits[p - 1].argmax()) for p in at] == ids.tolist()
