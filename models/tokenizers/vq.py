"""A small 2-D VQ-VAE over frames. Legend: N frames, H and W pixels, h and w codes, C channels, D code size, K codes.

Encoder: patches of 4x4 pixels through one matrix, residual blocks, one 2x2 merge; decoder the mirror image: 8x8 pixels
a code. Codebook by exponential moving averages with dead codes restarted (arXiv 1711.00937, appendix A.1; arXiv
2005.00341, appendix B.1); the encoder learns through the straight-through estimator and a
commitment loss. Nothing in it uses batch statistics, so that a frame's codes depend on the frame alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, silu

WEIGHTS_FILE, CONFIG_FILE = "tokenizer.safetensors", "tokenizer.json"
_PATCH, _MERGE = 4, 2


@dataclass(frozen=True, kw_only=True)
class VqConfig:
    """What, beside the weights, defines the tokenizer and the frames it is fed."""

    size: int
    """Frames are size x size pixels; a multiple of 8."""
    frames: int
    """Frames taken of a video clip."""
    codebook_size: int
    """K, number of codes."""
    code_dim: int
    """D, size of a code."""
    width: int
    """C, channels at a quarter of the resolution."""
    blocks: int
    """Residual blocks at each of the two resolutions, in encoder and decoder."""

    def __post_init__(self) -> None:
        if self.size % (_PATCH * _MERGE):
            raise ValueError(f"tokenizer.size is {self.size}; it must be a multiple of {_PATCH * _MERGE} pixels")


class Residual(nn.Module):
    """x + conv1x1(silu(conv3x3(silu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.point = nn.Conv2d(width, width, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Same shape out."""
        return x_NCHW + self.point(silu(self.wide(silu(x_NCHW))))


class VqTokenizer(nn.Module):
    """Frames to codes and back."""

    codebook: Tensor
    """(K, D) codes."""
    counts: Tensor
    """(K) moving average of uses a batch."""
    sums: Tensor
    """(K, D) moving average of the latents of each code."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        width, wider = config.width, 2 * config.width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(_PATCH),
            nn.Conv2d(3 * _PATCH**2, width, 1),
            *(Residual(width) for _ in range(config.blocks)),
            nn.Conv2d(width, wider, _MERGE, stride=_MERGE),
            *(Residual(wider) for _ in range(config.blocks)),
            nn.Conv2d(wider, config.code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dim, wider, 3, padding=1),
            *(Residual(wider) for _ in range(config.blocks)),
            nn.ConvTranspose2d(wider, width, _MERGE, stride=_MERGE),
            *(Residual(width) for _ in range(config.blocks)),
            nn.Conv2d(width, 3 * _PATCH**2, 1),
            nn.PixelShuffle(_PATCH),
        )
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))
        self.register_buffer("counts", torch.zeros(config.codebook_size))
        self.register_buffer("sums", torch.zeros(config.codebook_size, config.code_dim))

    def grid(self, frames: int = 1) -> tuple[int, int, int]:
        """(t, h, w) of the codes of this many frames."""
        side = self.config.size // (_PATCH * _MERGE)
        return frames, side, side

    def latent(self, pixels_N3HW: Tensor) -> Tensor:
        """Unquantised latents (N, h, w, D) of frames in -1..1."""
        return self.encoder(pixels_N3HW).permute(0, 2, 3, 1)

    def nearest(self, latent_MD: Tensor) -> Tensor:
        """(M) index of the nearest code, the lower one of equals."""
        distance_MK = self.codebook.square().sum(1) - 2 * latent_MD @ self.codebook.T
        return distance_MK.argmin(1)

    @torch.no_grad()
    def encode(self, pixels_N3HW: Tensor) -> Tensor:
        """Codes (N, h, w) of frames in -1..1."""
        latent_NhwD = self.latent(pixels_N3HW)
        return self.nearest(latent_NhwD.flatten(0, 2)).view(latent_NhwD.shape[:3])

    def decode_latent(self, latent_NhwD: Tensor) -> Tensor:
        """Frames (N, 3, H, W), not yet clipped."""
        return self.decoder(latent_NhwD.permute(0, 3, 1, 2))

    @torch.no_grad()
    def decode(self, codes_Nhw: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in -1..1 of codes."""
        return self.decode_latent(self.codebook[codes_Nhw]).clamp(-1, 1)

    def digest(self) -> str:
        """SHA-256 of the configuration and of everything that decides codes and pictures."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Weights and configuration into a folder."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=1, sort_keys=True))


def load_vq(folder: Path) -> VqTokenizer:
    """The tokenizer of a checkpoint folder, in evaluation mode."""
    tokenizer = VqTokenizer(VqConfig(**json.loads((folder / CONFIG_FILE).read_text())))
    tokenizer.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return tokenizer.eval()


def to_pixels(frames_NHW3: Tensor) -> Tensor:
    """Frames of bytes (N, H, W, 3) as floats -1..1, (N, 3, H, W)."""
    return frames_NHW3.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels_N3HW: Tensor) -> Tensor:
    """The inverse of `to_pixels`, rounded and clipped."""
    return ((pixels_N3HW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class VqLoss:
    """Losses of a batch and what the codebook update needs."""

    loss: Tensor
    reconstruction: Tensor
    """Mean of L1 and squared error on -1..1 pixels."""
    latents: Tensor
    """(M, D) before quantisation."""
    codes: Tensor
    """(M) of the latents."""

    def perplexity(self, codebook_size: int) -> float:
        """exp of the entropy of code use in the batch: 1 when one code is used, K when all are equally."""
        share_K = torch.bincount(self.codes, minlength=codebook_size).float() / len(self.codes)
        return float(torch.exp(-(share_K * (share_K + 1e-10).log()).sum()))


def vq_loss(tokenizer: VqTokenizer, pixels_N3HW: Tensor, commitment: float) -> VqLoss:
    """Reconstruction plus `commitment` times the squared distance of latents to their codes."""
    latent_NhwD = tokenizer.latent(pixels_N3HW)
    codes_M = tokenizer.nearest(latent_NhwD.detach().flatten(0, 2))
    quantised_NhwD = tokenizer.codebook[codes_M].view_as(latent_NhwD)
    straight_NhwD = latent_NhwD + (quantised_NhwD - latent_NhwD).detach()
    painted = tokenizer.decode_latent(straight_NhwD)
    reconstruction = l1_loss(painted, pixels_N3HW) + mse_loss(painted, pixels_N3HW)
    loss = reconstruction + commitment * mse_loss(latent_NhwD, quantised_NhwD)
    latent_MD = latent_NhwD.detach().flatten(0, 2)
    return VqLoss(loss=loss, reconstruction=reconstruction.detach(), latents=latent_MD, codes=codes_M)


@torch.no_grad()
def update_codebook(
    tokenizer: VqTokenizer, latent_MD: Tensor, codes_M: Tensor, decay: float, dead_below: float, seed: int
) -> int:
    """One moving-average step; codes used less than `dead_below` times a batch restart at latents drawn by `seed`.

    Returns how many restarted. The very first call places the whole codebook on latents.
    """
    K, D = tokenizer.codebook.shape
    use_K = torch.bincount(codes_M, minlength=K).to(latent_MD)
    tokenizer.counts.mul_(decay).add_(use_K, alpha=1 - decay)
    tokenizer.sums.mul_(decay).add_(torch.zeros(K, D).index_add_(0, codes_M, latent_MD), alpha=1 - decay)
    dead_K = tokenizer.counts < dead_below
    generator = torch.Generator().manual_seed(seed)
    drawn_K = torch.randint(len(latent_MD), (K,), generator=generator)
    tokenizer.sums[dead_K] = latent_MD[drawn_K[dead_K]]
    tokenizer.counts[dead_K] = 1.0
    tokenizer.codebook.copy_(tokenizer.sums / tokenizer.counts[:, None])
    return int(dead_K.sum())
