"""Drawing: what the cache gives is what the whole document gives; noise leaves as in diffusers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.diffusion import kept_share
from models.generate.choosing import Chance, Sampling, last
from models.generate.codes import code_rows
from models.generate.latents import latent_steps
from models.generate.scales import scale_steps
from models.layout import Document, Picture, document, opened
from models.raster import size_text
from tests.models.recipes import CODES, FORMATS, LATENT, SCALES, TEXT, batch_in_double, model_of

GREEDY = Sampling(temperature=0)
CAPTIONS = [TEXT.encode("a"), TEXT.encode("a longer caption")]


def prompts_of(name: str, grid, captions=CAPTIONS) -> list[Document]:
    return [opened([words], size_text(grid), FORMATS[name], TEXT) for words in captions]


def said_order(name: str, frames: int) -> list[int]:
    """Of the codes of pictures of `SCALES`, grid after grid in raster order, the order in which they are said."""
    order, at = list[int](), 0
    for rows, columns in SCALES * frames:
        places = list(itertools.product(range(rows), range(columns)))
        if name == "passes":
            corners = [(0, 0), (1, 1), (0, 1), (1, 0)]
            places.sort(key=lambda place: corners.index((place[0] % 2, place[1] % 2)))
        order += [at + row * columns + column for row, column in places]
        at += rows * columns
    return order


@torch.no_grad()
@pytest.mark.parametrize("name", ["nextflow", "passes"])
def test_scales_drawn_from_the_cache_are_the_most_likely_ones_of_the_whole_document(name: str) -> None:
    model = model_of(name)
    steps = [*scale_steps(model, prompts_of(name, (2, 3, 4)), SCALES, GREEDY, Chance([0, 0]), frames=2)]
    assert [step.shape[1] for step in steps] == np.cumsum([h * w for h, w in SCALES * 2]).tolist()
    assert all(torch.equal(after[:, : before.shape[1]], before) for before, after in itertools.pairwise(steps))
    drawn = steps[-1].numpy()
    grids = tuple((1, *sides) for _ in range(2) for sides in SCALES)
    for words, ids in zip(CAPTIONS, drawn, strict=True):
        one = document([words, Picture(grids=grids, ids=ids)], FORMATS[name], TEXT)
        made, batch = batch_in_double(name, [one], [0])
        likely = model.code_logits(model.hidden(batch)[0]).argmax(-1).numpy()
        offset = model.form.vocabulary.visual_offset
        of_codes = made.targets >= offset
        assert np.array_equal(likely[of_codes], made.targets[of_codes] - offset)
        assert np.array_equal(made.targets[of_codes] - offset, ids[said_order(name, frames=2)])


@torch.no_grad()
@pytest.mark.parametrize("name", ["nextflow", "passes"])
def test_known_scales_stand_and_the_others_are_the_most_likely_ones_after_them(name: str) -> None:
    model, rng = model_of(name), np.random.default_rng(3)
    count = sum(rows * columns for rows, columns in SCALES[:2])
    known = torch.from_numpy(rng.integers(CODES, size=(2, count)))
    prompts = prompts_of(name, (1, 3, 4))
    *_, before, drawn = scale_steps(model, prompts, SCALES, GREEDY, Chance([0, 0]), known=known)
    assert torch.equal(drawn[:, :count], known) and torch.equal(drawn[:, : before.shape[1]], before)
    grids = tuple((1, *sides) for sides in SCALES)
    for words, ids in zip(CAPTIONS, drawn.numpy(), strict=True):
        one = document([words, Picture(grids=grids, ids=ids)], FORMATS[name], TEXT)
        made, batch = batch_in_double(name, [one], [0])
        likely = model.code_logits(model.hidden(batch)[0]).argmax(-1).numpy()
        of_codes = made.targets >= model.form.vocabulary.visual_offset
        order = said_order(name, frames=1)
        assert np.array_equal(likely[of_codes][count:], ids[order][count:])
        assert not np.array_equal(likely[of_codes][:count], ids[order][:count])


@torch.no_grad()
def test_codes_of_a_head_of_their_own_are_drawn_from_it() -> None:
    model = model_of("janus")
    drawn = last(code_rows(model, prompts_of("janus", (1, 2, 4)), (1, 2, 4), GREEDY, Chance([0, 0]))).numpy()
    for words, ids in zip(CAPTIONS, drawn, strict=True):
        one = document([words, Picture(grids=((1, 2, 4),), ids=ids)], FORMATS["janus"], TEXT)
        made, batch = batch_in_double("janus", [one], [0])
        likely = model.logits(model.hidden(batch)[0])[..., model.form.vocabulary.visual_offset :].argmax(-1).numpy()
        of_codes = made.targets >= model.form.vocabulary.visual_offset
        assert np.array_equal(likely[of_codes], ids)


@torch.no_grad()
def test_latents_leave_the_noise_as_in_diffusers_with_the_whole_document_at_every_step() -> None:
    from diffusers import DDIMScheduler

    model, grid, how = model_of("transfusion"), (1, 2, 4), Sampling(steps=20)
    (words,) = CAPTIONS[1:]
    drawn = last(latent_steps(model, prompts_of("transfusion", grid, [words]), grid, how, Chance([3])))[0]
    schedule = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=4.0)
    schedule.set_timesteps(20)
    x = torch.randn(1, 8, LATENT, generator=torch.Generator().manual_seed(3))[0].double()
    blank = Picture(grids=(grid,), vectors=np.zeros((8, LATENT), np.float16))
    one = document([words, blank], FORMATS["transfusion"], TEXT)
    _, batch = batch_in_double("transfusion", [one], [0])
    for step in schedule.timesteps.tolist():
        # a clean part that this level scales to x, and no noise: the model is shown x itself
        clean = x / model.kept[step].sqrt()
        batch = replace(batch, clean_PC=clean, noise_PC=torch.zeros_like(x), step_P=torch.full((8,), step))
        x = schedule.step(model.hidden(batch)[1], step, x, use_clipped_model_output=True).prev_sample.double()
    form = FORMATS["transfusion"]
    torch.testing.assert_close(drawn.double(), x * form.latent_std + form.latent_mean, rtol=1e-3, atol=1e-3)


def test_the_schedule_is_diffusers() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(kept_share(1000).float(), theirs, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_guidance_steers_away_from_what_is_said_without_a_caption() -> None:
    """With the captions themselves as the plain prompts there is nothing to steer away from."""
    model, grid = model_of("emu3"), (1, 2, 3)
    given, plain = prompts_of("emu3", grid), prompts_of("emu3", grid, [[], []])

    def drawn(prompts: list[Document], guidance: float = 1.0, plain: list[Document] | None = None) -> torch.Tensor:
        return last(code_rows(model, prompts, grid, replace(GREEDY, guidance=guidance), Chance([0, 0]), plain))

    free = drawn(given)
    assert torch.equal(drawn(given, 3.0, given), free)
    assert torch.equal(drawn(given, 0.0, plain), drawn(plain))
    assert not torch.equal(drawn(given, 20.0, plain), free)
