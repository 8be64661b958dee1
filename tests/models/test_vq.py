"""The VQ tokenizer: codes depend on the frame alone, a saved one is the same one, training brings the error down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.tokenizers.vq import VqConfig, VqTokenizer, load_vq, to_bytes, to_pixels, update_codebook, vq_loss

CONFIG = VqConfig(size=32, frames=2, codebook_size=24, code_dim=4, width=8, blocks=1)


def _tokenizer() -> VqTokenizer:
    torch.manual_seed(0)
    tokenizer = VqTokenizer(CONFIG).eval()
    tokenizer.codebook.normal_()
    return tokenizer


def test_shapes_grid_and_range() -> None:
    tokenizer, frames = _tokenizer(), torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    codes = tokenizer.encode(to_pixels(frames))
    assert codes.shape == (3, 4, 4) and tokenizer.grid(3) == (3, 4, 4)
    painted = tokenizer.decode(codes)
    assert painted.shape == (3, 3, 32, 32) and painted.abs().max() <= 1
    assert torch.equal(to_bytes(to_pixels(frames)), frames)


def test_nearest_is_the_nearest() -> None:
    tokenizer, latents = _tokenizer(), torch.randn(40, 4)
    assert torch.equal(tokenizer.nearest(latents), torch.cdist(latents, tokenizer.codebook).argmin(1))


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(tmp_path)
    again = load_vq(tmp_path)
    assert again.digest() == tokenizer.digest() and again.config == CONFIG
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    with torch.no_grad():
        again.codebook[0, 0] += 1e-3
    assert again.digest() != tokenizer.digest()


def test_training_brings_the_error_down_and_no_code_stays_dead() -> None:
    torch.manual_seed(1)
    tokenizer = VqTokenizer(CONFIG)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    colours = torch.rand(64, 3, 1, 1) * 2 - 1
    pixels = colours.expand(64, 3, 32, 32).contiguous()
    losses = []
    for step in range(60):
        found = vq_loss(tokenizer, pixels[(step % 4) * 16 :][:16], 0.25)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        update_codebook(tokenizer, found.latents, found.codes, 0.9, 0.01, step)
        losses.append(float(found.reconstruction))
    assert sum(losses[-8:]) < 0.75 * sum(losses[:8])
    assert len(tokenizer.encode(pixels).unique()) > 4
    assert tokenizer.codebook.isfinite().all()


def test_size_must_fit_the_patches() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.size is 60"):
        VqConfig(size=60, frames=1, codebook_size=2, code_dim=2, width=4, blocks=1)
