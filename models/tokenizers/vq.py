"""A 2-D VQ-VAE over single frames: Chameleon, LlamaGen and Janus, SimpleAR. Legend: as in interface.py.

The codebook learns by moving averages with dead codes restarted (arXiv 1711.00937, appendix A.1; arXiv 2005.00341,
appendix B.1) or by gradient; the encoder through the straight-through estimator and a commitment loss. A video is its
frames, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from models.tokenizers import towers
from models.tokenizers.interface import Encoded, Grid, Painted, VisionTokenizer
from models.tokenizers.quantise import Codebook, straight_through
from models.tokenizers.shapes import VqShape


class VqTokenizer(VisionTokenizer):
    """Frames to a raster of codes each, and back."""

    kind: ClassVar[str] = "vq"

    def __init__(self, shape: VqShape) -> None:
        super().__init__()
        self.shape = shape
        self.codebook_size = shape.codebook_size
        self.stride = (1, shape.tower.stride)
        self.encoder = towers.encoder(shape.tower, shape.code_dim)
        self.codebook = Codebook(
            shape.codebook_size, shape.code_dim, learned=shape.codebook == "gradient", normalised=shape.normalised,
            rate=shape.rate, restart=shape.restart,
        )  # fmt: skip
        self.decoder = towers.decoder(shape.tower, shape.code_dim)

    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """One: all frames, height and width over the stride."""
        self.checked(frames, height, width)
        return ((frames, height // self.stride[1], width // self.stride[1]),)

    def latent(self, pixels_N3HW: Tensor) -> Tensor:
        """Unquantised latents (N, h, w, D) of frames, as they are compared with codes."""
        return self.codebook.place(self.encoder(pixels_N3HW).permute(0, 2, 3, 1))

    @torch.no_grad()
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Codes of every frame in raster order."""
        n, t, _, h, w = pixels_NT3HW.shape
        grids = self.grids(t, h, w)
        latent_MD = self.latent(pixels_NT3HW.flatten(0, 1)).flatten(0, 2)
        return Encoded(grids=grids, ids=self.codebook.nearest(latent_MD).view(n, -1))

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """Frames of codes."""
        assert encoded.ids is not None
        (t, h, w), n = encoded.grids[0], len(encoded.ids)
        latent_NhwD = self.codebook.codes()[encoded.ids].view(n * t, h, w, -1)
        return self.decoder(latent_NhwD.permute(0, 3, 1, 2)).unflatten(0, (n, t)).clamp(-1, 1)

    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """Reconstruction through the codes, and the commitment (and codebook) loss."""
        latent_NhwD = self.latent(pixels_NT3HW.flatten(0, 1))
        flat_MD = latent_NhwD.flatten(0, 2)
        codes_M = self.codebook.nearest(flat_MD)
        quantised_NhwD = self.codebook.codes()[codes_M].view_as(latent_NhwD)
        commitment = self.shape.commitment * mse_loss(latent_NhwD, quantised_NhwD.detach())
        if self.shape.codebook == "gradient":
            commitment = commitment + mse_loss(quantised_NhwD, latent_NhwD.detach())
        straight_NhwD = straight_through(latent_NhwD, quantised_NhwD)
        painted = self.decoder(straight_NhwD.permute(0, 3, 1, 2)).view_as(pixels_NT3HW)
        latents_NPD = flat_MD.detach().unflatten(0, (len(pixels_NT3HW), -1))
        return Painted(
            pixels=painted,
            terms={"commitment": commitment},
            latents=latents_NPD,
            codes=codes_M.view(latents_NPD.shape[:2]),
        )

    def code_vectors(self) -> Tensor:
        """(K, D)."""
        return self.codebook.codes()

    def learn(self, latents_MD: Tensor, codes_M: Tensor, seed: int) -> int:
        """The codebook's moving averages and restarts."""
        return self.codebook.learn(
            latents_MD, codes_M, decay=self.shape.decay, dead_below=self.shape.dead_below, seed=seed
        )
