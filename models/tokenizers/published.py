"""Tokenizers that somebody published, as they are. Legend: as in interface.py.

transformers' `Emu3VQVAE`, `ChameleonVQVAE` (which has no decoder) and `JanusVQVAE`, and diffusers' `AutoencoderKL`.
All of them take pixels in -1..1: Emu3's, Janus' and AutoencoderKL's own processors give (x / 255 - 0.5) / 0.5, as
here; Chameleon's gives 0.0078 x - 1, which is darker by up to 0.011. Only safetensors are read.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.tokenizers import shapes
from models.tokenizers.interface import SHAPE_FILE, Encoded, Grid, Painted, VisionTokenizer
from models.tokenizers.shapes import PublishedShape
from models.tokenizers.vae import library, patched, unpatched
from models.weights import pretrained

_FOLDER = "published"


class PublishedTokenizer(VisionTokenizer):
    """One of the adapters below, chosen by `shape.library_class`. It is not trained."""

    kind: ClassVar[str] = "published"

    def __init__(self, shape: PublishedShape) -> None:
        super().__init__()
        self.shape = shape
        self.adapter: Adapter = ADAPTERS[shape.library_class](shape)
        self.codebook_size, self.stride = self.adapter.codebook_size, self.adapter.stride
        self.decodes = self.adapter.decodes

    @classmethod
    def from_folder(cls, folder: Path, shape: PublishedShape) -> PublishedTokenizer:
        """The tokenizer of a checkpoint folder, which holds the weights themselves."""
        return cls(dataclasses.replace(shape, place=str(folder / _FOLDER)))

    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """One. A single frame counts as many as one code stands for."""
        time, space = self.stride
        frames = time if frames == 1 else frames
        self.checked(frames, height, width)
        return ((frames // time, height // space, width // space),)

    @torch.no_grad()
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Codes, or latents of a VAE."""
        grid = self.grids(pixels_NT3HW.shape[1], *pixels_NT3HW.shape[-2:])[0]
        return self.adapter.encode(pixels_NT3HW, grid)

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """Frames; ValueError where the published model has no decoder."""
        return self.adapter.decode(encoded).clamp(-1, 1)

    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """Not trained."""
        raise ValueError("a published tokenizer is taken as it is: train one of another kind")

    def identity(self) -> dict[str, Any]:
        """The library's class and its configuration, wherever the weights lie."""
        return {"shape": shapes.plain(self.shape) | {"place": None}, "config": self.adapter.facts()}

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """The library's own files, and the shape. The weights never change, so those of now are those of before."""
        self.adapter.model.save_pretrained(folder / _FOLDER, safe_serialization=True)
        (folder / SHAPE_FILE).write_text(json.dumps(shapes.plain(self.shape), indent=1, sort_keys=True))


class Adapter(nn.Module, ABC):
    """What is particular to one class of a library."""

    model: Any
    codebook_size: int = 0
    stride: tuple[int, int]
    decodes: bool = True

    @abstractmethod
    def encode(self, pixels_NT3HW: Tensor, grid: Grid) -> Encoded:
        """Codes or latents of clips."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> Tensor:
        """Frames, not clipped."""

    def facts(self) -> dict[str, Any]:
        """The library's configuration, less what only says where or by which version it was saved."""
        plain: dict[str, Any] = json.loads(self.model.config.to_json_string())
        loose = ("_name_or_path", "transformers_version", "_diffusers_version", "dtype", "torch_dtype")
        return {name: value for name, value in plain.items() if name not in loose}


def _transformers(name: str, place: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this tokenizer needs transformers: pip install 'plait[weights]'") from error
    return pretrained(getattr(transformers, name), place, use_safetensors=True).eval()


class Emu3(Adapter):
    """transformers' Emu3VQVAE: 4 frames of 8x8 pixels a code; a still is repeated, and comes back as 4 frames."""

    def __init__(self, shape: PublishedShape) -> None:
        super().__init__()
        self.model = _transformers("Emu3VQVAE", shape.place)
        config = self.model.config
        self.codebook_size = config.codebook_size
        self.stride = (config.temporal_downsample_factor, 2 ** (len(config.channel_multiplier) - 1))

    def encode(self, pixels_NT3HW: Tensor, grid: Grid) -> Encoded:
        """Codes (N, t*h*w)."""
        n, t, _, h, w = pixels_NT3HW.shape
        given = pixels_NT3HW[:, 0] if t == 1 else pixels_NT3HW
        codes = self.model.encode(given, torch.tensor([[h, w]] * n)).image_tokens
        return Encoded(grids=(grid,), ids=torch.stack([one.flatten() for one in codes]))

    def decode(self, encoded: Encoded) -> Tensor:
        """(N, 4t, 3, H, W)."""
        assert encoded.ids is not None
        return self.model.decode(encoded.ids.unflatten(1, encoded.grids[0]))


class Chameleon(Adapter):
    """transformers' ChameleonVQVAE: the encoder alone, 16x16 pixels a code."""

    decodes = False

    def __init__(self, shape: PublishedShape) -> None:
        super().__init__()
        self.model = _transformers("ChameleonVQVAE", shape.place)
        self.codebook_size = self.model.config.num_embeddings
        self.stride = (1, 2 ** (len(self.model.config.channel_multiplier) - 1))

    def encode(self, pixels_NT3HW: Tensor, grid: Grid) -> Encoded:
        """Codes (N, t*h*w), frame after frame."""
        codes = self.model.encode(pixels_NT3HW.flatten(0, 1)).image_tokens
        return Encoded(grids=(grid,), ids=codes.view(len(pixels_NT3HW), -1))

    def decode(self, encoded: Encoded) -> Tensor:
        """Not in transformers."""
        raise ValueError("transformers' ChameleonVQVAE has no decoder: its codes can be extracted, not painted")


class Janus(Adapter):
    """transformers' JanusVQVAE (LlamaGen's): 16x16 pixels a code, of any number of places."""

    def __init__(self, shape: PublishedShape) -> None:
        super().__init__()
        self.model = _transformers("JanusVQVAE", shape.place)
        self.codebook_size = self.model.config.num_embeddings
        self.stride = (1, 2 ** (len(self.model.config.channel_multiplier) - 1))

    def encode(self, pixels_NT3HW: Tensor, grid: Grid) -> Encoded:
        """Codes (N, t*h*w), frame after frame."""
        codes = self.model.encode(pixels_NT3HW.flatten(0, 1)).image_tokens
        return Encoded(grids=(grid,), ids=codes.view(len(pixels_NT3HW), -1))

    def decode(self, encoded: Encoded) -> Tensor:
        """(N, t, 3, H, W). The model's own `decode` is the same for the one grid of its configuration."""
        assert encoded.ids is not None
        (t, h, w), n = encoded.grids[0], len(encoded.ids)
        codes = normalize(self.model.quantize.embedding(encoded.ids), dim=-1).view(n * t, h, w, -1)
        painted = self.model.decoder(self.model.post_quant_conv(codes.permute(0, 3, 1, 2).contiguous()))
        return painted.unflatten(0, (n, t))


class Kl(Adapter):
    """diffusers' AutoencoderKL: means of the posteriors, shifted and scaled as its configuration says."""

    def __init__(self, shape: PublishedShape) -> None:
        super().__init__()
        self.model = pretrained(library(), shape.place, use_safetensors=True).eval()
        self.patch = shape.patch
        self.stride = (1, shape.patch * 2 ** (len(self.model.config.block_out_channels) - 1))
        self.scale = float(self.model.config.scaling_factor or 1.0)
        self.shift = float(self.model.config.shift_factor or 0.0)

    def encode(self, pixels_NT3HW: Tensor, grid: Grid) -> Encoded:
        """Latents (N, t, h, w, C * patch^2), float16."""
        mean = self.model.encode(pixels_NT3HW.flatten(0, 1)).latent_dist.mean.unflatten(0, pixels_NT3HW.shape[:2])
        return Encoded(grids=(grid,), latents=patched((mean - self.shift) * self.scale, self.patch))

    def decode(self, encoded: Encoded) -> Tensor:
        """(N, t, 3, H, W)."""
        assert encoded.latents is not None
        latents = unpatched(encoded.latents, self.patch) / self.scale + self.shift
        return self.model.decode(latents.flatten(0, 1)).sample.unflatten(0, latents.shape[:2])

    def facts(self) -> dict[str, Any]:
        """diffusers' configuration."""
        return {name: value for name, value in dict(self.model.config).items() if not name.startswith("_")}


ADAPTERS: dict[str, type[Any]] = {
    "Emu3VQVAE": Emu3,
    "ChameleonVQVAE": Chameleon,
    "JanusVQVAE": Janus,
    "AutoencoderKL": Kl,
}
