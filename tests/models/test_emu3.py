"""Our Emu3 tokenizer is Emu3's: the same codes and pixels from the same weights; time only looks back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from models.tokenizers.emu3 import Emu3Tokenizer
from models.tokenizers.interface import load_tokenizer
from models.tokenizers.shapes import Emu3Shape

TINY = Emu3Shape(
    kind="emu3", codebook_size=64, width=32, multipliers=(1, 2), blocks=1, temporal_stride=4, norm_groups=32
)


def published(attention: bool):
    """transformers' model with random weights, statistics and biases: no layer is the identity."""
    from transformers import Emu3VQVAE
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig

    torch.manual_seed(0)
    config = Emu3VQVAEConfig(
        codebook_size=64, embed_dim=4, latent_channels=4, double_latent=False, in_channels=3, out_channels=3,
        temporal_downsample_factor=4, base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1,
        attn_resolutions=[1] if attention else [], hidden_size=64, num_attention_heads=1,
    )  # fmt: skip
    model = Emu3VQVAE(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
        model.quantize.embedding.weight.normal_(0, 1.0)
    return model


def ours(model, attention: bool) -> Emu3Tokenizer:
    shape = Emu3Shape(
        kind="emu3", codebook_size=64, width=32, multipliers=(1, 2), blocks=1, norm_groups=32, attention=attention
    )
    return Emu3Tokenizer(shape).eval().load_published(model.state_dict())


@pytest.mark.parametrize("attention", [True, False])
def test_codes_and_pixels_are_those_of_transformers(attention: bool) -> None:
    model = published(attention)
    tokenizer = ours(model, attention)
    pixels = torch.rand(2, 8, 3, 16, 24) * 2 - 1
    sizes = torch.tensor([[16, 24]] * 2)
    with torch.no_grad():
        theirs = torch.stack(model.encode(pixels, sizes).image_tokens)
        encoded = tokenizer.encode(pixels)
        assert encoded.grids == ((2, 8, 12),)
        assert torch.equal(encoded.ids, theirs.flatten(1)) and len(encoded.ids.unique()) > 10
        painted = model.decode(theirs).clamp(-1, 1)
        assert torch.allclose(tokenizer.decode(encoded), painted, atol=1e-5)
        still = model.encode(pixels[:, 0], sizes).image_tokens
        alone = tokenizer.encode(pixels[:, :1])
        assert alone.grids == ((1, 8, 12),) and torch.equal(alone.ids, torch.stack(still).flatten(1))
        assert torch.allclose(tokenizer.decode(alone)[:, 0], model.decode(torch.stack(still)).clamp(-1, 1), atol=1e-5)


def test_every_layer_counts() -> None:
    """Each tensor of the published state dict moves codes, latents or pixels when it is moved."""
    model = published(True)
    pixels = torch.rand(1, 8, 3, 16, 16) * 2 - 1
    tokenizer = ours(model, True)
    with torch.no_grad():
        encoded = tokenizer.encode(pixels)
        before = tokenizer.latent(pixels), tokenizer.decode(encoded)
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            moved = {n: t.clone() for n, t in model.state_dict().items()}
            moved[name] += 0.1 * torch.rand_like(tensor)
            tokenizer.load_published(moved)
            after = tokenizer.latent(pixels), tokenizer.decode(encoded)
            # a constant added to every key shifts all logits of a query alike, and softmax does not see it
            shown = any(not torch.allclose(a, b, atol=1e-7) for a, b in zip(before, after, strict=True))
            assert shown or name.endswith("k_proj.bias"), name


def test_the_encoders_time_looks_back_only() -> None:
    tokenizer = Emu3Tokenizer(TINY).eval()
    pixels = torch.rand(1, 12, 3, 16, 16) * 2 - 1
    changed = pixels.clone()
    changed[:, 8:] = 0
    with torch.no_grad():
        one, two = tokenizer.latent(pixels), tokenizer.latent(changed)
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.allclose(one[:, 2], two[:, 2])


def test_training_does_not_see_neighbours_and_brings_the_error_down(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = Emu3Shape(
        kind="emu3", codebook_size=32, patch=4, width=16, multipliers=(1, 2), blocks=1, norm_groups=0, codebook="ema",
        decay=0.9, dead_below=0.01, attention=False, code_dim=8,
    )  # fmt: skip
    tokenizer = Emu3Tokenizer(shape).train()
    assert tokenizer.stride == (4, 8) and not any(
        m.training for m in tokenizer.modules() if isinstance(m, nn.BatchNorm3d)
    )
    smooth = torch.nn.functional.interpolate(torch.rand(32, 3, 2, 2) * 2 - 1, size=16, mode="bilinear")
    pixels = smooth[:, None].repeat(1, 4, 1, 1, 1)
    alone, together = tokenizer(pixels[:1], 0).pixels, tokenizer(pixels[:4], 0).pixels[:1]
    assert torch.allclose(alone, together, atol=1e-5)
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3)
    errors = []
    for step in range(120):
        batch = pixels[(step % 4) * 8 :][:8]
        painted = tokenizer(batch, step)
        error = mse_loss(painted.pixels, batch)
        optimizer.zero_grad()
        (error + painted.terms["commitment"]).backward()
        optimizer.step()
        tokenizer.learn(painted.latents.flatten(0, 1), painted.codes.flatten(), step)
        errors.append(error.item())
    assert sum(errors[-8:]) < 0.7 * sum(errors[:8])
    tokenizer.eval().save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest() == tokenizer.digest() and torch.equal(again.encode(pixels).ids, tokenizer.encode(pixels).ids)


def test_the_published_sizes_are_the_published_sizes() -> None:
    shape = Emu3Shape(kind="emu3")
    with torch.device("meta"):
        tokenizer = Emu3Tokenizer(shape)
    assert tokenizer.stride == (4, 8) and tokenizer.grids(4, 512, 512) == ((1, 64, 64),) == tokenizer.grids(1, 512, 512)
    assert tokenizer.grids(8, 720, 720) == ((2, 90, 90),)
    total = sum(p.numel() for p in tokenizer.parameters())
    assert 260e6 < total < 290e6  # "starts from SBER-MoVQGAN-270M"
    with pytest.raises(ValueError, match="multiples of 4 frames and of 8 pixels"):
        tokenizer.grids(6, 512, 512)
