"""The KL-VAE: what is stored is the mean, in patches that can be put together again, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

from models.tokenizers.interface import load_tokenizer
from models.tokenizers.shapes import VaeShape
from models.tokenizers.vae import VaeTokenizer, patched, unpatched

SHAPE = VaeShape(kind="vae", latent_channels=4, widths=(8, 16), blocks=1, norm_groups=4, attention=False)


def made() -> VaeTokenizer:
    torch.manual_seed(0)
    return VaeTokenizer(SHAPE).eval()


def test_patches_are_put_together_again_and_hold_neighbours() -> None:
    latents = torch.randn(2, 3, 4, 6, 8)
    places = patched(latents, 2)
    assert places.shape == (2, 3, 3, 4, 16) and places.dtype == torch.float16
    assert torch.allclose(unpatched(places, 2), latents, atol=2e-3)
    assert torch.equal(places[0, 1, 2, 3].float(), latents.half()[0, 1, :, 4:6, 6:8].flatten().float())


def test_latents_are_the_means_of_diffusers_posterior() -> None:
    tokenizer, pixels = made(), torch.rand(2, 3, 3, 16, 24) * 2 - 1
    encoded = tokenizer.encode(pixels)
    assert encoded.ids is None and encoded.grids == ((3, 4, 6),) == tokenizer.grids(3, 16, 24)
    with torch.no_grad():
        mean = tokenizer.vae.encode(pixels[1]).latent_dist.mean
        assert torch.allclose(unpatched(encoded.latents, 2)[1], mean, atol=2e-3)
        painted = tokenizer.vae.decode(unpatched(encoded.latents, 2)[1]).sample.clamp(-1, 1)
    assert torch.allclose(tokenizer.decode(encoded)[1], painted, atol=1e-6)
    assert torch.equal(tokenizer.encode(pixels).latents, encoded.latents)


def test_the_divergence_is_that_of_a_normal_and_the_sample_follows_the_seed() -> None:
    tokenizer, pixels = made(), torch.rand(2, 1, 3, 16, 16) * 2 - 1
    painted = tokenizer(pixels, 3)
    posterior = tokenizer.vae.encode(pixels[:, 0]).latent_dist
    standard = torch.distributions.Normal(torch.zeros_like(posterior.mean), 1.0)
    own = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(own, standard).sum() / (2 * 16 * 16) * SHAPE.kl_weight
    assert float(painted.terms["kl"]) == pytest.approx(float(expected), rel=1e-4)
    assert torch.equal(tokenizer(pixels, 3).pixels, painted.pixels)
    assert not torch.equal(tokenizer(pixels, 4).pixels, painted.pixels)
    assert torch.allclose(tokenizer(pixels[:1], 3).pixels, painted.pixels[:1], atol=1e-5)
    assert torch.allclose(tokenizer(pixels[1:], 3, [1]).pixels, painted.pixels[1:], atol=1e-5)  # another worker's share


def test_saved_and_loaded_is_the_same_and_training_brings_the_error_down(tmp_path: Path) -> None:
    tokenizer = made().train()
    pixels = torch.nn.functional.interpolate(torch.rand(16, 3, 3, 3) * 2 - 1, size=16, mode="bilinear")[:, None]
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors = []
    for step in range(50):
        painted = tokenizer(pixels, step)
        error = mse_loss(painted.pixels, pixels)
        optimizer.zero_grad()
        (error + painted.terms["kl"]).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.4 * errors[0]
    tokenizer.eval().save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest() == tokenizer.digest()
    assert torch.equal(again.encode(pixels).latents, tokenizer.encode(pixels).latents)
