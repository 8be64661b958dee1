"""Published tokenizers give the codes and pixels that their own libraries give, from a folder of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.tokenizers.interface import build, load_tokenizer
from models.tokenizers.shapes import PublishedShape
from models.tokenizers.vae import unpatched
from tests.models.test_emu3 import published as emu3_model

SMALL = {
    "embed_dim": 4, "num_embeddings": 50, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
}  # fmt: skip


def chameleon() -> Any:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(0)
    return spread(ChameleonVQVAE(ChameleonVQVAEConfig(**SMALL, resolution=16)))


def janus() -> Any:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    return spread(JanusVQVAE(JanusVQVAEConfig(**SMALL, num_patches=4)))


def kl() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=0.3,
    ).eval()  # fmt: skip


def spread(model: Any) -> Any:
    """Codes that lie among the latents, so that many are used."""
    model.eval()
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels(8).flatten(0, 1))).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:50]])
    return model


def pixels(t: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(2, t, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def adapted(model: Any, library_class: str, folder: Path) -> Any:
    model.save_pretrained(folder, safe_serialization=True)
    return build(PublishedShape(kind="published", library_class=library_class, place=str(folder))).eval()


@torch.no_grad()
def test_emu3(tmp_path: Path) -> None:
    model = emu3_model(True)
    tokenizer = adapted(model, "Emu3VQVAE", tmp_path)
    film = pixels(8, 16, 24)
    encoded = tokenizer.encode(film)
    theirs = torch.stack(model.encode(film, torch.tensor([[16, 24]] * 2)).image_tokens)
    assert tokenizer.stride == (4, 2) and encoded.grids == ((2, 8, 12),)
    assert torch.equal(encoded.ids, theirs.flatten(1)) and tokenizer.codebook_size == 64
    assert torch.allclose(tokenizer.decode(encoded), model.decode(theirs).clamp(-1, 1), atol=1e-6)
    still = tokenizer.encode(film[:, :1])
    theirs = torch.stack(model.encode(film[:, 0], torch.tensor([[16, 24]] * 2)).image_tokens)
    assert torch.equal(still.ids, theirs.flatten(1)) and still.grids == ((1, 8, 12),)
    assert torch.allclose(tokenizer.decode(still)[:, 0], model.decode(theirs).clamp(-1, 1), atol=1e-6)


@torch.no_grad()
def test_chameleon_encodes_and_says_that_it_cannot_paint(tmp_path: Path) -> None:
    model = chameleon()
    tokenizer = adapted(model, "ChameleonVQVAE", tmp_path)
    encoded = tokenizer.encode(pixels())
    for row in range(2):
        assert torch.equal(encoded.ids[row], model.encode(pixels()[row]).image_tokens.flatten())
    assert encoded.grids == ((2, 4, 4),) and not tokenizer.decodes and len(encoded.ids.unique()) > 10
    with pytest.raises(ValueError, match="has no decoder: its codes can be extracted, not painted"):
        tokenizer.decode(encoded)


@torch.no_grad()
def test_janus_at_its_own_size_and_at_others(tmp_path: Path) -> None:
    model = janus()
    tokenizer = adapted(model, "JanusVQVAE", tmp_path)
    encoded = tokenizer.encode(pixels())
    theirs = model.encode(pixels().flatten(0, 1)).image_tokens.view(4, -1)
    assert torch.equal(encoded.ids.view(4, -1), theirs) and len(encoded.ids.unique()) > 10
    painted = model.decode(theirs).clamp(-1, 1)
    assert torch.allclose(tokenizer.decode(encoded).flatten(0, 1), painted, atol=1e-6)
    wide = tokenizer.encode(pixels(1, 16, 32))
    assert wide.grids == ((1, 4, 8),) and tokenizer.decode(wide).shape == (2, 1, 3, 16, 32)


@torch.no_grad()
def test_autoencoder_kl(tmp_path: Path) -> None:
    model = kl()
    tokenizer = adapted(model, "AutoencoderKL", tmp_path)
    encoded = tokenizer.encode(pixels())
    mean = model.encode(pixels().flatten(0, 1)).latent_dist.mean
    assert tokenizer.stride == (1, 4) and encoded.grids == ((2, 4, 4),) and encoded.latents.dtype == torch.float16
    assert torch.allclose(unpatched(encoded.latents, 2).flatten(0, 1), (mean - 0.1) * 0.3, atol=1e-3)
    painted = model.decode(mean).sample.clamp(-1, 1)
    assert torch.allclose(tokenizer.decode(encoded).flatten(0, 1), painted, atol=0.02)  # float16 lies between


@pytest.mark.parametrize(
    ("make", "library_class"),
    [
        (chameleon, "ChameleonVQVAE"),
        (janus, "JanusVQVAE"),
        (kl, "AutoencoderKL"),
        (lambda: emu3_model(False), "Emu3VQVAE"),
    ],
)
def test_a_checkpoint_holds_the_weights_and_is_the_same_wherever_they_came_from(
    make: Any, library_class: str, tmp_path: Path
) -> None:
    tokenizer = adapted(make(), library_class, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    tokenizer.save(tmp_path / "ours")
    assert not [p for p in (tmp_path / "ours").rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    again = load_tokenizer(tmp_path / "ours")
    film = pixels(4)
    one, two = tokenizer.encode(film), again.encode(film)
    assert again.digest() == tokenizer.digest() and one.grids == two.grids
    assert torch.equal(one.latents if one.ids is None else one.ids, two.latents if two.ids is None else two.ids)
    moved = build(PublishedShape(kind="published", library_class=library_class, place=str(tmp_path / "elsewhere")))
    assert moved.digest() == tokenizer.digest()


def test_sizes_that_do_not_fit_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = janus()
    tokenizer = adapted(model, "JanusVQVAE", tmp_path / "good")
    with pytest.raises(ValueError, match="give multiples of 1 frames and of 4 pixels"):
        tokenizer.encode(pixels(1, 18, 16))
    folder = tmp_path / "pickled"
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        build(PublishedShape(kind="published", library_class="JanusVQVAE", place=str(folder)))
