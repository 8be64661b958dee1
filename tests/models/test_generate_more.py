"""Choosing, guidance, batches, texts, documents that go on, films that slide: each beside an oracle of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import raster
from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling, chosen, last, narrowed
from models.generate.codes import code_rows
from models.generate.context import Context, read_batch
from models.generate.films import film_frames, film_grids
from models.generate.pictures import Asked, drawings, painted, picture_of, pictures
from models.generate.texts import Going, continued, texts
from models.layout import Picture, document, finest, opened
from models.places import places, tokens_of
from models.recipe import Parts
from models.tokenizers.scales import grids_of
from models.vocabulary import Vocabulary
from tests.models.recipes import CODES, FORMATS, NAMES, SCALES, TEXT, model_of, places_of
from tests.models.recipes import picture_of as random_picture
from tests.tokenizers import vq

GREEDY = Sampling(temperature=0)
FREE = Sampling(temperature=8.0, top_k=12, top_p=0.9, guidance=2.5, steps=4)
GRIDS = {name: ((1, 2, 4),) for name in NAMES} | {
    name: tuple((1, *sides) for sides in SCALES) for name in ("nextflow", "passes")
}
DRAWN = ("emu3", "chameleon", "janus", "nextflow", "passes", "transfusion")
WORDS = [TEXT.encode(text) for text in ("a", "a longer prompt", "red")]


def draw(name: str, words, seeds, how=FREE, **asked) -> torch.Tensor:
    given_asked = Asked(grids=GRIDS[name], negative="not so", **asked)
    return last(drawings(model_of(name), TEXT, [[one] for one in words], how, Chance(seeds), given_asked))


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.01, 1.0), st.floats(0.1, 3.0))
@settings(deadline=None, max_examples=15)
def test_top_k_and_top_p_are_those_of_transformers(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = (torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 3).round(decimals=1)  # with ties
    ours = narrowed(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, theirs))
    assert torch.equal(ours, theirs)


def test_ids_are_drawn_as_often_as_they_are_likely_and_impossible_ones_never() -> None:
    logits = torch.tensor([float("-inf"), 1.0, 0.0, float("-inf"), -1.0, float("-inf")])
    uniform = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    ids = chosen(logits.expand(len(uniform), 6), Sampling(), uniform)
    share = torch.bincount(ids, minlength=6) / len(ids)
    torch.testing.assert_close(share, logits.softmax(0), atol=1e-3, rtol=0)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert chosen(logits.expand(2, 6), Sampling(), ends).tolist() == [1, 4]


@pytest.mark.parametrize("how", [{"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"steps": 0}])
def test_settings_that_cannot_be_are_refused(how) -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        Sampling(**how)


@torch.no_grad()
@pytest.mark.parametrize("name", DRAWN)
def test_a_sample_belongs_to_its_prompt_and_seed_whatever_is_drawn_beside_it(name: str) -> None:
    together = draw(name, WORDS, [5, 6, 7])
    alone = torch.cat([draw(name, [words], [seed]) for words, seed in zip(WORDS, [5, 6, 7], strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(together, draw(name, WORDS, [8, 9, 10]))


@torch.no_grad()
def test_guidance_is_the_formula_over_passes_by_themselves() -> None:
    model, how = model_of("emu3"), Sampling(guidance=3.5)
    docs = [opened([words], "2*4", FORMATS["emu3"], TEXT) for words in (*WORDS, *[TEXT.encode("bad")] * 3)]
    context = Context(model, docs[:3], how, Chance([0] * 3), docs[3:])
    said = []
    for one in docs:
        made = places_of("emu3", [one])
        batch = read_batch(made, one, model.form, model.parts, model.trunk.head.weight)
        said.append(model.code_logits(model.hidden(batch)[0][-1]))
    told, plain = torch.stack(said[:3]), torch.stack(said[3:])
    steered = context.steered(model.code_logits(context.last_RD))
    torch.testing.assert_close(steered, plain + 3.5 * (told - plain), rtol=1e-9, atol=1e-9)


def uncached_text(model: AnyToAny, parts, count: int) -> list[int]:
    """The most likely text, with the whole document in one pass for every token."""
    vocabulary, said = model.form.vocabulary, []
    may = torch.zeros(vocabulary.size, dtype=torch.bool)
    may[[*range(vocabulary.text_size), vocabulary.eos]] = True
    for _ in range(count):
        one = document([*parts, said], model.form, TEXT, ended=False)
        made = places(tokens_of([one]), interleave=model.form.layout.interleave)
        batch = read_batch(made, one, model.form, model.parts, model.trunk.head.weight)
        logits = model.logits(model.hidden(batch)[0][-1])
        token = int(logits.masked_fill(~may, float("-inf")).argmax())
        if token == vocabulary.eos:
            break
        said.append(token)
    return said


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_text_after_pictures_is_that_of_the_whole_document_at_every_token(name: str) -> None:
    model, rng = model_of(name), np.random.default_rng(0)
    parts = [[random_picture(name, rng, read=True), words] for words in WORDS] + [[WORDS[1]]]
    found = continued(model, TEXT, parts, Going(max_tokens=7, how=GREEDY), [0] * 4)
    for given_parts, added in zip(parts, found, strict=True):
        assert [token for part in added for token in part] == uncached_text(model, given_parts, 7)
    assert texts(model, TEXT, parts, GREEDY, [0] * 4, 7) == [TEXT.decode([t for p in row for t in p]) for row in found]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2 tied", "qwen3"])
def test_greedy_text_is_that_of_transformers_generate(kind: str, tmp_path) -> None:
    from models.hf_layout import from_hf
    from tests.models.test_hf_layout import theirs

    hf = theirs(kind, tmp_path)
    trunk = from_hf(str(tmp_path))
    vocabulary = Vocabulary.compact(32, 0)
    form = replace(FORMATS["chameleon"], vocabulary=vocabulary)
    model = AnyToAny(trunk.config, Parts(), form)
    model.trunk = trunk.eval()
    prompts = [[3, 17, 5, 9], [7], [30, 2], [11, 11, 6, 1, 8, 4]]
    found = continued(model.eval(), TEXT, [[one] for one in prompts], Going(max_tokens=12, how=GREEDY), [0] * 4)
    stop = {"eos_token_id": vocabulary.eos, "pad_token_id": 0}
    silent = [token for token in range(32, 40) if token != vocabulary.eos]
    for prompt, added in zip(prompts, found, strict=True):
        ids = torch.tensor([[vocabulary.bos, *prompt]])
        said = hf.generate(ids, max_new_tokens=12, do_sample=False, suppress_tokens=silent, **stop)
        wanted = [token for token in said[0, len(prompt) + 1 :].tolist() if token != vocabulary.eos]
        assert [token for part in added for token in part] == wanted
    assert sum(map(len, found)) >= 1


def with_gaps(name: str):
    """A format whose ids lie apart, in another order, as Emu3's do."""
    ids = {"bos": 309, "eos": 310, "pad": 256, "boi": 312, "img": 311, "eoi": 313, "eol": 306, "eof": 307}
    codes = FORMATS[name].vocabulary.codebook_size
    return replace(FORMATS[name], vocabulary=Vocabulary(text_size=256, codebook_size=codes, visual_offset=320, **ids))


class Wild(AnyToAny):
    """Says anything, loudest what must not stand there."""

    def logits(self, hidden):
        return self._noise(hidden, self.form.vocabulary.size)

    def code_logits(self, hidden):
        return self._noise(hidden, self.form.vocabulary.codebook_size)

    def _noise(self, hidden, size):
        noise = torch.randn(*hidden.shape[:-1], size, generator=self.dice) * 30
        if size == self.form.vocabulary.size:
            noise[..., [self.form.vocabulary.eol, self.form.vocabulary.img, size - 1]] = 1e4
            noise[..., self.form.vocabulary.boi] += 60
        return noise


@torch.no_grad()
@given(st.integers(0, 2**31), st.sampled_from(["emu3", "chameleon", "nextflow", "passes", "transfusion"]))
@settings(deadline=None, max_examples=10)
def test_interleaved_documents_parse_whatever_the_logits_say(seed: int, name: str) -> None:
    form, plain = with_gaps(name), model_of(name)
    config = replace(plain.trunk.config, vocabulary_size=form.vocabulary.size)
    model = Wild(config, plain.parts, form, plain.code_size).eval()
    model.dice = torch.Generator().manual_seed(seed)
    other = ((1, 3, 2),) if name not in ("nextflow", "passes") else tuple((1, *sides) for sides in SCALES[:3])
    stated = form.layout.marks.size
    going = Going(
        max_tokens=12,
        pictures=[Asked(grids=GRIDS[name]), *([Asked(grids=other)] if stated else [])],
        max_pictures=2,
        how_pictures=Sampling(steps=2),
    )
    prompts = [[WORDS[0]], [WORDS[1]], []]
    for parts, added in zip(prompts, continued(model, TEXT, prompts, going, [seed, 1, 2]), strict=True):
        shown = [part for part in added if isinstance(part, Picture)]
        words = [part for part in added if not isinstance(part, Picture)]
        assert len(shown) <= 2 and sum(map(len, words)) <= 12 and all(0 <= t < 256 for part in words for t in part)
        tokens = document([*parts, *added], form, TEXT).joined()[0].tolist()
        boi, eoi = form.vocabulary.boi, form.vocabulary.eoi
        starts = [place for place, token in enumerate(tokens) if token == boi]
        assert len(starts) == len(shown) and tokens[-1] == form.vocabulary.eos
        if form.layout.vision != "codes":
            continue
        for start, picture in zip(starts, shown, strict=True):
            block = tokens[start : tokens.index(eoi, start) + 1]
            grid, codes = raster.parse_block(block, form.vocabulary, TEXT, form.layout.marks, picture.grids[0])
            assert grid == picture.grids[0] and codes.tolist() == picture.ids.tolist()
            assert codes.min() >= 0 and codes.max() < CODES


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 2), (2, 2, 5)])
@pytest.mark.parametrize("name", ["emu3", "nextflow", "passes", "transfusion"])
def test_what_is_drawn_has_the_grid_that_was_asked_for(name: str, grid) -> None:
    grids = (grid,)
    if name in ("nextflow", "passes"):
        grids = tuple((1, *sides) for _ in range(grid[0]) for sides in grids_of((1, 2, 4), *grid[1:]))
    if name == "transfusion":
        drawn = list(drawings(model_of(name), TEXT, [[WORDS[0]]] * 2, FREE, Chance([1, 2]), Asked(grids=grids)))
        assert {tuple(one.shape) for one in drawn} == {(2, int(np.prod(grid)), 8)} and len(drawn) == FREE.steps
        return
    sizes = [
        one.shape[1]
        for one in drawings(model_of(name), TEXT, [[WORDS[0]]] * 2, FREE, Chance([1, 2]), Asked(grids=grids))
    ]
    ends = (
        np.cumsum([h * w for _, h, w in grids])
        if name in ("nextflow", "passes")
        else grid[2] * np.arange(1, grid[0] * grid[1] + 1)
    )
    assert sizes == ends.tolist() and finest(grids) == grid


@torch.no_grad()
@pytest.mark.parametrize("name", ["emu3", "nextflow", "passes", "transfusion"])
def test_films_go_on_beyond_the_window_each_one_after_the_last_frames_alone(name: str) -> None:
    """The oracle draws every window by itself, from a document that holds nothing but the frames that are kept."""
    model, window = model_of(name), Asked(grids=film_grids(GRIDS[name], 3))
    parts = [[words] for words in WORDS[:2]]
    *_, film = film_frames(model, TEXT, parts, FREE, Chance([1, 2]), window, 6, keep=2)
    assert film.shape[:2] == (2, 6)
    chance = Chance([1, 2])
    wanted = last(drawings(model, TEXT, parts, FREE, chance, window)).unflatten(1, (3, -1))
    for _ in range(3):
        kept = replace(window, grids=film_grids(GRIDS[name], 2))
        begun = [picture_of(one[-2:].flatten(0, 1), kept) for one in wanted]
        more = last(drawings(model, TEXT, parts, FREE, chance, window, begun)).unflatten(1, (3, -1))
        torch.testing.assert_close(more[:, :2].float(), wanted[:, -2:].float(), atol=2e-2, rtol=1e-2)
        wanted = torch.cat([wanted, more[:, 2:]], 1)
    assert torch.equal(film, wanted)
    *_, longer = film_frames(model, TEXT, parts, FREE, Chance([3, 4]), window, 5, film[:, :4])
    assert torch.equal(longer[:, :4], film[:, :4]) and longer.shape[1] == 5


@torch.no_grad()
def test_codes_after_given_frames_are_the_most_likely_ones_of_the_whole_film() -> None:
    model, form = model_of("emu3"), FORMATS["emu3"]
    begun = Picture(grids=((1, 2, 4),), ids=np.arange(8))
    prompt = opened([WORDS[1]], "2*2*4", form, TEXT, begun)
    drawn = last(code_rows(model, [prompt], (2, 2, 4), GREEDY, Chance([0]), begun=1))[0].numpy()
    film = Picture(grids=((2, 2, 4),), ids=np.concatenate([begun.ids, drawn]))
    one = document([WORDS[1], film], form, TEXT)
    made = places_of("emu3", [one])
    hidden = model.hidden(read_batch(made, one, form, model.parts, model.trunk.head.weight))[0]
    likely, offset = model.code_logits(hidden).argmax(-1).numpy(), form.vocabulary.visual_offset
    assert likely[made.targets >= offset][8:].tolist() == drawn.tolist()


def test_pictures_come_as_pixels_and_grow_row_by_row() -> None:
    tokenizer, model = vq(codebook_size=CODES), model_of("emu3")
    asked = Asked(grids=((1, 2, 3),))
    shown = pictures(model, tokenizer, TEXT, ["a", "b b"], FREE, [1, 2], asked)
    assert shown.shape == (2, 1, 16, 24, 3) and shown.dtype == np.uint8
    grown = [
        painted(tokenizer, drawn, asked.grids)
        for drawn in drawings(model, TEXT, [[TEXT.encode("a")], [TEXT.encode("b b")]], FREE, Chance([1, 2]), asked)
    ]
    assert len(grown) == 2 and np.array_equal(grown[-1], shown)
    assert (grown[0][:, :, 8:] == 127).all() and not (grown[0][:, :, :8] == 127).all()
