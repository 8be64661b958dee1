"""The VQ tokenizer: codes depend on the frame alone, a saved one is the same one, training brings the error down."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from models.tokenizers.interface import Encoded, load_tokenizer, to_bytes, to_pixels
from models.tokenizers.quantise import Codebook, nearest, straight_through, usage
from models.tokenizers.shapes import TowerShape
from models.tokenizers.towers import decoder, deepened, encoder
from models.tokenizers.vq import VqTokenizer
from tests.tokenizers import vq, vq_shape


def test_shapes_grids_and_range() -> None:
    tokenizer, frames = vq(), torch.randint(256, (2, 3, 32, 48, 3), dtype=torch.uint8)
    encoded = tokenizer.encode(to_pixels(frames))
    assert encoded.grids == ((3, 4, 6),) == tokenizer.grids(3, 32, 48)
    assert encoded.ids is not None and encoded.ids.shape == (2, 3 * 4 * 6)
    painted = tokenizer.decode(encoded)
    assert painted.shape == (2, 3, 3, 32, 48) and painted.abs().max() <= 1
    assert torch.equal(to_bytes(to_pixels(frames)), frames)


def test_codes_are_in_raster_order_frame_after_frame() -> None:
    tokenizer, pixels = vq(), torch.rand(1, 2, 3, 64, 72) * 2 - 1
    whole = tokenizer.encode(pixels).ids
    parts = [tokenizer.encode(pixels[:, frame : frame + 1]).ids for frame in range(2)]
    assert torch.equal(whole, torch.cat(parts, 1))
    changed = whole.clone()
    changed[0, 72 + 71] = (changed[0, 72 + 71] + 1) % 24  # the lower right corner of the second frame
    both = [tokenizer.decode(Encoded(grids=((2, 8, 9),), ids=ids)) for ids in (whole, changed)]
    moved = (both[0] - both[1]).abs().sum(dim=(0, 2))
    assert moved[0].sum() == 0 and moved[1, :24].sum() == 0 == moved[1, :, :32].sum() and moved[1, 56:, 64:].min() > 0


@pytest.mark.parametrize("normalised", [False, True])
def test_the_nearest_code_is_the_nearest_one_looked_for_by_hand(normalised: bool) -> None:
    book, latents = Codebook(40, 4, learned=True, normalised=normalised), torch.randn(60, 4)
    torch.nn.init.normal_(book.weight)
    found = book.nearest(book.place(latents))
    for latent, code in zip(latents, found.tolist(), strict=True):
        codes, one = book.weight.detach(), latent
        if normalised:
            codes, one = codes / codes.norm(dim=1, keepdim=True), one / one.norm()
        assert code == min(range(40), key=lambda k: float((codes[k] - one).square().sum()))
    twice = torch.cat([latents[:3], latents[:3]])
    assert nearest(latents[:3], twice).tolist() == [0, 1, 2]  # the lower one of equals


def test_the_gradient_passes_the_codes_straight() -> None:
    latent = torch.randn(5, 4, requires_grad=True)
    codes, target = torch.randn(5, 4), torch.randn(5, 4)
    straight = straight_through(latent, codes)
    assert torch.allclose(straight, codes, atol=1e-6)
    mse_loss(straight, target).backward()
    assert torch.allclose(latent.grad, 2 * (codes - target) / 20)


def test_moving_averages_equal_vector_quantize_pytorch() -> None:
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    theirs = VectorQuantize(dim=4, codebook_size=16, decay=0.9, threshold_ema_dead_code=0, eps=0.0)
    start = torch.randn(16, 4)
    theirs._codebook.embed.data.copy_(start[None])
    theirs._codebook.embed_avg.data.copy_(start[None])
    theirs._codebook.cluster_size.data.fill_(1.0)
    ours = Codebook(16, 4, learned=False)
    ours.weight.data.copy_(start)
    ours.sums.copy_(start)
    ours.counts.fill_(1.0)
    theirs.train()
    for step in range(5):
        latents = torch.randn(200, 4)
        _, indices, _ = theirs(latents[None])
        codes = ours.nearest(latents)
        assert torch.equal(codes, indices[0])
        ours.learn(latents, codes, decay=0.9, dead_below=0.0, seed=step)
    assert torch.allclose(ours.weight, theirs._codebook.embed[0], atol=1e-5)


def test_dead_codes_restart_at_latents_drawn_by_the_seed() -> None:
    books = [Codebook(8, 2, learned=learned) for learned in (False, True, False)]
    latents = torch.randn(50, 2)
    codes = torch.zeros(50, dtype=torch.long)
    for book, seed in zip(books, (3, 3, 4), strict=True):
        assert book.learn(latents, codes, decay=0.5, dead_below=0.5, seed=seed) == 8  # the first call places all
        assert all((latents == code).all(1).any() for code in book.weight)
        assert book.learn(latents, codes, decay=0.4, dead_below=0.5, seed=seed + 1) == 7
    assert torch.equal(books[0].weight[1:], books[1].weight[1:])
    assert not torch.equal(books[0].weight[1:], books[2].weight[1:])


def test_a_price_sends_what_is_all_but_the_same_to_the_common_code() -> None:
    torch.manual_seed(0)
    free, priced = (Codebook(16, 4, learned=False, rate=rate) for rate in (0.0, 0.7))
    latents = torch.randn(400, 4)
    for book in (free, priced):
        for step in range(20):
            book.learn(latents, book.nearest(latents), decay=0.8, dead_below=0.0, seed=step)
    shares = (priced.counts + 1e-3) / (priced.counts + 1e-3).sum()
    distance = (latents[:, None] - priced.weight[None]).square().sum(-1)
    assert float(priced.error) == pytest.approx(float(distance.amin(1).mean()), rel=0.15)
    # Chou, Lookabaugh, Gray 1989, equation 4, by brute force.
    meant = (distance - 0.7 * priced.error * shares.log()).argmin(1)
    assert torch.equal(priced.nearest(latents), meant)
    assert not torch.equal(meant, distance.argmin(1))
    assert torch.equal(free.nearest(latents), (latents[:, None] - free.weight[None]).square().sum(-1).argmin(1))
    assert usage(priced.nearest(latents), 16)[1] < usage(free.nearest(latents), 16)[1]


def test_far_restarts_lie_where_codes_are_missing() -> None:
    book = Codebook(8, 2, learned=False, restart="far")
    near, away = torch.randn(990, 2) * 0.01, torch.tensor([[50.0, 50.0]]).repeat(10, 1)
    latents = torch.cat([near, away])
    book.counts.fill_(1.0)
    book.weight.data.zero_()
    book.sums.zero_()
    assert book.learn(latents, torch.zeros(1000, dtype=torch.long), decay=0.1, dead_below=0.5, seed=0) == 7
    assert (book.weight[1:] == 50.0).all()


def test_sizes_that_came_later_leave_names_as_they_were() -> None:
    old = VqTokenizer(vq_shape())
    assert not {"rate", "restart"} & set(old.identity())
    priced = VqTokenizer(dataclasses.replace(old.shape, rate=0.5, restart="far"))
    assert priced.identity() == {**old.identity(), "rate": 0.5, "restart": "far"}
    with pytest.raises(ValueError, match=r"rate=0\.5 with codebook=gradient"):
        dataclasses.replace(old.shape, rate=0.5, codebook="gradient")


def test_usage_and_perplexity() -> None:
    assert usage(torch.tensor([0, 1, 2, 3]), 4) == (1.0, pytest.approx(4.0))
    assert usage(torch.tensor([2, 2, 2]), 4) == (0.25, pytest.approx(1.0))
    assert usage(torch.tensor([0, 0, 1, 1]), 8)[1] == pytest.approx(2.0)


@pytest.mark.parametrize("how", [{"normalised": True, "codebook": "gradient"}, {"rate": 0.5, "restart": "far"}])
def test_saved_and_loaded_is_the_same(tmp_path: Path, how: dict[str, Any]) -> None:
    tokenizer = vq(**how)
    latents = torch.randn(50, tokenizer.shape.code_dim)
    tokenizer.learn(latents, tokenizer.codebook.nearest(latents), 0)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest() == tokenizer.digest() and again.shape == tokenizer.shape
    pixels = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    assert torch.equal(again.encode(pixels).ids, tokenizer.encode(pixels).ids)
    with torch.no_grad():
        again.codebook.weight[0, 0] += 1e-3
    assert again.digest() != tokenizer.digest()


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_training_brings_the_error_down_and_codes_are_used(codebook: str) -> None:
    torch.manual_seed(1)
    tokenizer = VqTokenizer(vq_shape(codebook=codebook, decay=0.9, dead_below=0.01))
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3)
    pixels = (torch.rand(64, 1, 3, 1, 1) * 2 - 1).expand(64, 1, 3, 32, 32).contiguous()
    errors = []
    for step in range(60):
        batch = pixels[(step % 4) * 16 :][:16]
        painted = tokenizer(batch, step)
        error = mse_loss(painted.pixels, batch)
        optimizer.zero_grad()
        (error + sum(painted.terms.values())).backward()
        optimizer.step()
        tokenizer.learn(painted.latents.flatten(0, 1), painted.codes.flatten(), step)
        errors.append(error.item())
    assert sum(errors[-8:]) < 0.75 * sum(errors[:8])
    assert len(tokenizer.encode(pixels).ids.unique()) > 4


def test_a_deepened_tower_computes_the_same_until_it_is_trained() -> None:
    for groups in (0, 4):
        shape = TowerShape(patch=2, width=8, multipliers=(1, 2), blocks=1, norm_groups=groups, attention=True)
        tower = decoder(shape, 3)
        twice = deepened(tower)
        x = torch.randn(2, 3, 4, 5)
        assert torch.allclose(tower(x), twice(x), atol=1e-6) and tower(x).shape == (2, 3, 16, 20)
        assert sum(p.numel() for p in twice.parameters()) > 1.3 * sum(p.numel() for p in tower.parameters())
        assert encoder(shape, 5)(torch.randn(1, 3, 16, 20)).shape == (1, 5, 4, 5)


def test_sizes_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="give multiples of 1 frames and of 8 pixels"):
        vq().grids(1, 60, 64)
    with pytest.raises(ValueError, match="norm_groups=3 does not divide"):
        TowerShape(patch=1, width=8, multipliers=(1,), blocks=1, norm_groups=3)
