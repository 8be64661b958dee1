"""A KL-VAE of single frames, diffusers' `AutoencoderKL` (Transfusion, arXiv 2408.11039; UniFluid).

Legend: as in interface.py.

What is stored is the mean of the posterior, not a sample, scaled, in float16, with `patch` x `patch` neighbours in one
place (Transfusion's linear patches, section 3.2). A video is its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from models.tokenizers.interface import Encoded, Grid, Painted, VisionTokenizer
from models.tokenizers.shapes import VaeShape


def library() -> Any:
    """diffusers' class, or one sentence on how to get it."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError("this tokenizer needs diffusers: pip install 'plait[weights]'") from error
    return AutoencoderKL


def patched(latents_NTCHW: Tensor, patch: int) -> Tensor:
    """(N, T, h, w, C * patch^2) float16 of latents (N, T, C, h * patch, w * patch)."""
    return pixel_unshuffle(latents_NTCHW, patch).permute(0, 1, 3, 4, 2).to(torch.float16)


def unpatched(latents_NthwC: Tensor, patch: int) -> Tensor:
    """The inverse of `patched`, in float32."""
    return pixel_shuffle(latents_NthwC.float().permute(0, 1, 4, 2, 3), patch)


class VaeTokenizer(VisionTokenizer):
    """Frames to latents and back."""

    kind: ClassVar[str] = "vae"
    codebook_size = 0

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.shape = shape
        levels = len(shape.widths)
        self.vae: Any = library()(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=shape.widths,
            layers_per_block=shape.blocks,
            latent_channels=shape.latent_channels,
            norm_num_groups=shape.norm_groups,
            mid_block_add_attention=shape.attention,
            scaling_factor=1.0,
        )
        self.stride = (1, shape.patch * 2 ** (levels - 1))

    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """One: all frames, height and width over the stride."""
        self.checked(frames, height, width)
        return ((frames, height // self.stride[1], width // self.stride[1]),)

    @torch.no_grad()
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Means of the posteriors."""
        n, t, _, h, w = pixels_NT3HW.shape
        grids = self.grids(t, h, w)
        mean = self.vae.encode(pixels_NT3HW.flatten(0, 1)).latent_dist.mean.unflatten(0, (n, t))
        return Encoded(grids=grids, latents=patched(mean, self.shape.patch))

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """Frames of latents."""
        assert encoded.latents is not None
        latents = unpatched(encoded.latents, self.shape.patch)
        return self.vae.decode(latents.flatten(0, 1)).sample.unflatten(0, latents.shape[:2]).clamp(-1, 1)

    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """Reconstruction of a sample of the posterior, and its divergence from the standard normal, nats a pixel."""
        posterior = self.vae.encode(pixels_NT3HW.flatten(0, 1)).latent_dist
        places = range(len(pixels_NT3HW)) if places is None else places
        shape = (pixels_NT3HW.shape[1], *posterior.mean.shape[1:])
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed((seed << 20) + place)) for place in places]
        noise = torch.cat(draws).to(posterior.mean)
        painted = self.vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().sum() / (pixels_NT3HW.numel() / 3)
        return Painted(pixels=painted.view_as(pixels_NT3HW), terms={"kl": self.shape.kl_weight * divergence})
