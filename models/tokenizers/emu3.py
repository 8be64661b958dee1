"""Emu3's 3-D MoVQ (arXiv 2409.18869, section 2.2; baaivision/Emu3; transformers' `Emu3VQVAE`).

Legend: as in interface.py. Frames go through a 2-D encoder, then causal convolutions in time, two of which halve the
number of frames; every normalisation of the decoder is conditioned on the quantised latent. Modules are named as in
transformers, so published weights load as they are (`load_published`). With `patch` above 1 a square of pixels is
folded into channels first, which makes it trainable on a CPU.

Emu3's temporal blocks hold batch normalisation. Here it always uses its running statistics, in training too: a clip
never depends on its neighbours, nor the result on the number of workers. Trained from scratch they stay at mean 0,
variance 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    interpolate,
    mse_loss,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
    silu,
)

from models.tokenizers.interface import Encoded, Grid, Painted, VisionTokenizer
from models.tokenizers.quantise import Codebook, straight_through
from models.tokenizers.shapes import Emu3Shape
from models.tokenizers.towers import norm

_KERNEL = 3
_HALVED = 2.0
"""What the rectifier behind a convolution takes from small values: silu(x) is about x / 2."""


class CausalConv(nn.Module):
    """3-D convolution whose time only looks back: two frames of zeros before the first (N, C, T, H, W)."""

    def __init__(
        self, width_in: int, width: int, kernel: tuple[int, int, int], stride: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width, kernel, stride=(stride, 1, 1))
        self._pad = (kernel[2] // 2, kernel[2] // 2, kernel[1] // 2, kernel[1] // 2, 2, 0)
        with torch.no_grad():  # begin near the identity in time: two halvings and two doublings lose little
            self.conv.weight.mul_(0.1)
            self.conv.weight[range(width), range(width), -stride:, kernel[1] // 2, kernel[2] // 2] += gain / stride

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """(N, width, T / stride, H, W)."""
        return self.conv(pad(x_NCTHW, self._pad))


class TemporalUp(nn.Module):
    """Twice the frames: nearest neighbour, then a causal convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CausalConv(width, width, (3, 3, 3), gain=_HALVED)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """(N, C, 2T, H, W)."""
        return self.conv(x_NCTHW.repeat_interleave(2, dim=2))


class TemporalDown(nn.Module):
    """Half the frames: a causal convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CausalConv(width, width, (4, 3, 3), stride=2, gain=_HALVED)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """(N, C, T / 2, H, W)."""
        return self.conv(x_NCTHW)


class TemporalResidual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) over time and space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.conv1, self.conv2 = (CausalConv(width, width, (3, 3, 3)) for _ in range(2))

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Same shape out."""
        inner = self.conv1(silu(self.norm1(x_NCTHW)))
        return x_NCTHW + self.conv2(silu(self.norm2(inner)))


class SpatialNorm(nn.Module):
    """Group normalisation, scaled and shifted by the quantised latent (MoVQ, arXiv 2209.09002, equation 4)."""

    def __init__(self, groups: int, width: int, width_latent: int) -> None:
        super().__init__()
        self.norm_layer = norm(groups, width)
        self.conv_y = nn.Conv2d(width_latent, width, 1)
        self.conv_b = nn.Conv2d(width_latent, width, 1)
        for conv, bias in ((self.conv_y, 1.0), (self.conv_b, 0.0)):  # begin as a plain normalisation
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.constant_(conv.bias, bias)

    def forward(self, x_NCHW: Tensor, latent_NDhw: Tensor) -> Tensor:
        """Same shape out."""
        latent = interpolate(latent_NDhw, size=x_NCHW.shape[-2:], mode="nearest")
        return self.norm_layer(x_NCHW) * self.conv_y(latent) + self.conv_b(latent)


class Block(nn.Module):
    """Residual block of one frame; with a latent, its normalisations are conditioned on it."""

    def __init__(self, width_in: int, width: int, groups: int, width_latent: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = (norm_of(groups, w, width_latent) for w in (width_in, width))
        self.conv1 = nn.Conv2d(width_in, width, _KERNEL, padding=1)
        self.conv2 = nn.Conv2d(width, width, _KERNEL, padding=1)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x_NCHW: Tensor, *latent: Tensor) -> Tensor:
        """(N, width, H, W)."""
        inner = self.conv1(silu(self.norm1(x_NCHW, *latent)))
        inner = self.conv2(silu(self.norm2(inner, *latent)))
        return inner + (self.nin_shortcut(x_NCHW) if hasattr(self, "nin_shortcut") else x_NCHW)


class Attention(nn.Module):
    """Among the places of one frame, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Same shape out."""
        n, c, h, w = x_NCHW.shape
        x_NPC = x_NCHW.flatten(2).transpose(1, 2)
        mixed = scaled_dot_product_attention(self.q_proj(x_NPC), self.k_proj(x_NPC), self.v_proj(x_NPC))
        return self.out_proj(mixed).transpose(1, 2).reshape(n, c, h, w)


def norm_of(groups: int, width: int, width_latent: int | None) -> nn.Module:
    """Group normalisation of the encoder, or the decoder's conditioned one."""
    if width_latent is None:
        return norm(groups, width)
    return SpatialNorm(groups, width, width_latent)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, groups: int, width_latent: int | None) -> None:
        super().__init__()
        self.block_1 = Block(width, width, groups, width_latent)
        self.attn_1 = Attention(width)
        self.attn_norm = norm_of(groups, width, width_latent)
        self.block_2 = Block(width, width, groups, width_latent)

    def forward(self, x_NCHW: Tensor, *latent: Tensor) -> Tensor:
        """Same shape out."""
        x_NCHW = self.block_1(x_NCHW, *latent)
        x_NCHW = x_NCHW + self.attn_1(self.attn_norm(x_NCHW, *latent))
        return self.block_2(x_NCHW, *latent)


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention at the lowest one, and the way to the next."""

    def __init__(
        self, widths: list[int], groups: int, width_latent: int | None, attention: bool, step: str | None
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList(Block(a, b, groups, width_latent) for a, b in pairs)
        self.attn = nn.ModuleList(Attention(b) for _, b in pairs if attention)
        self.attn_norms = nn.ModuleList(norm_of(groups, b, width_latent) for _, b in pairs if attention)
        if step == "down":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(widths[-1], widths[-1], _KERNEL, stride=2)})
        if step == "up":
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(widths[-1], widths[-1], _KERNEL, padding=1)})

    def forward(self, x_NCHW: Tensor, *latent: Tensor) -> Tensor:
        """(N, last width, H, W), half or twice the sides."""
        for place, block in enumerate(self.block):
            x_NCHW = block(x_NCHW, *latent)
            if len(self.attn):
                x_NCHW = x_NCHW + self.attn[place](self.attn_norms[place](x_NCHW, *latent))
        if hasattr(self, "downsample"):
            return self.downsample["conv"](pad(x_NCHW, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            return self.upsample["conv"](interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))
        return x_NCHW


def over_frames(module: Any, x_NCTHW: Tensor, *latent: Tensor) -> Tensor:
    """A module of single frames, over all frames."""
    n, t = x_NCTHW.shape[0], x_NCTHW.shape[2]
    flat = (part.transpose(1, 2).flatten(0, 1) for part in (x_NCTHW, *latent))
    return module(*flat).unflatten(0, (n, t)).transpose(1, 2)


class Encoder(nn.Module):
    """Frames (N, C, T, H, W) to latents (N, C', T / 4, H / 8, W / 8)."""

    def __init__(self, shape: Emu3Shape) -> None:
        super().__init__()
        widths, last = [shape.width * m for m in shape.multipliers], len(shape.multipliers) - 1
        self.conv_in = nn.Conv2d(3 * shape.patch**2, shape.width, _KERNEL, padding=1)
        before = [shape.width, *widths]
        self.down_block = nn.Module()
        self.down_block.down = nn.ModuleList(
            Level(
                [before[i], *[widths[i]] * shape.blocks], shape.norm_groups, None, shape.attention and i == last,
                "down" if i != last else None,
            )
            for i in range(last + 1)
        )  # fmt: skip
        self.middle_block = Middle(widths[-1], shape.norm_groups, None)
        self.norm_out = norm(shape.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], shape.code_dim, _KERNEL, padding=1)
        halvings = int(math.log2(shape.temporal_stride))
        self.time_conv = nn.ModuleList(TemporalDown(shape.code_dim) for _ in range(halvings))
        self.time_res_stack = nn.ModuleList(TemporalResidual(shape.code_dim) for _ in range(shape.blocks))

    def frames(self, x_NCHW: Tensor) -> Tensor:
        """The 2-D part."""
        x_NCHW = self.conv_in(x_NCHW)
        for level in self.down_block.down:  # type: ignore[union-attr]
            x_NCHW = level(x_NCHW)
        return self.conv_out(silu(self.norm_out(self.middle_block(x_NCHW))))

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Latents before the quantiser's convolution."""
        x_NCTHW = over_frames(self.frames, x_NCTHW)
        for conv in self.time_conv:
            x_NCTHW = silu(conv(x_NCTHW))
        for block in self.time_res_stack:
            x_NCTHW = block(x_NCTHW)
        return x_NCTHW


class Decoder(nn.Module):
    """Latents and the quantised ones (N, C', t, h, w) to frames; both go through the same temporal part."""

    def __init__(self, shape: Emu3Shape) -> None:
        super().__init__()
        widths, last = [shape.width * m for m in shape.multipliers], len(shape.multipliers) - 1
        groups, latent = shape.norm_groups, shape.code_dim
        doublings = int(math.log2(shape.temporal_stride))
        self.time_res_stack = nn.ModuleList(TemporalResidual(shape.code_dim) for _ in range(shape.blocks))
        self.time_conv = nn.ModuleList(TemporalUp(shape.code_dim) for _ in range(doublings))
        self.conv_in = nn.Conv2d(shape.code_dim, widths[-1], _KERNEL, padding=1)
        self.middle_block = Middle(widths[-1], groups, latent)
        before = [*widths[1:], widths[-1]]
        self.up_block = nn.Module()
        self.up_block.up = nn.ModuleList(
            Level(
                [before[i], *[widths[i]] * (shape.blocks + 1)], groups, latent, shape.attention and i == last,
                "up" if i else None,
            )
            for i in range(last + 1)
        )  # fmt: skip
        self.norm_out = SpatialNorm(groups, widths[0], latent)
        self.conv_out = nn.Conv2d(widths[0], 3 * shape.patch**2, _KERNEL, padding=1)

    def frames(self, x_NCHW: Tensor, latent_NDhw: Tensor) -> Tensor:
        """The 2-D part."""
        x_NCHW = self.middle_block(self.conv_in(x_NCHW), latent_NDhw)
        for level in reversed(self.up_block.up):  # type: ignore[arg-type]
            x_NCHW = level(x_NCHW, latent_NDhw)
        return self.conv_out(silu(self.norm_out(x_NCHW, latent_NDhw)))

    def forward(self, x_NCThw: Tensor, latent_NDThw: Tensor) -> Tensor:
        """(N, C, 4t, 8h, 8w)."""
        both = torch.cat((x_NCThw, latent_NDThw))
        for block in self.time_res_stack:
            both = block(both)
        for conv in self.time_conv:
            both = silu(conv(both))
        return over_frames(self.frames, *both.chunk(2))


class Emu3Tokenizer(VisionTokenizer):
    """Clips to one code for 4 frames of 8x8 pixels (sizes are settings). A still is one frame, repeated."""

    kind: ClassVar[str] = "emu3"

    def __init__(self, shape: Emu3Shape) -> None:
        super().__init__()
        self.shape = shape
        self.codebook_size = shape.codebook_size
        self.stride = (shape.temporal_stride, shape.patch * 2 ** (len(shape.multipliers) - 1))
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quant_conv = CausalConv(shape.code_dim, shape.code_dim, (3, 1, 1))
        self.post_quant_conv = CausalConv(shape.code_dim, shape.code_dim, (3, 1, 1))
        self.codebook = Codebook(shape.codebook_size, shape.code_dim, learned=shape.codebook == "gradient")

    def train(self, mode: bool = True) -> Emu3Tokenizer:
        """As ever, but batch normalisation keeps to its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        return self

    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """One. A single frame counts as `temporal_stride` of them."""
        time, space = self.stride
        frames = time if frames == 1 else frames
        self.checked(frames, height, width)
        return ((frames // time, height // space, width // space),)

    def latent(self, pixels_NT3HW: Tensor) -> Tensor:
        """Unquantised latents (N, t, h, w, D)."""
        if pixels_NT3HW.shape[1] == 1:
            pixels_NT3HW = pixels_NT3HW.repeat_interleave(self.stride[0], dim=1)
        folded = pixel_unshuffle(pixels_NT3HW, self.shape.patch) if self.shape.patch > 1 else pixels_NT3HW
        return self.quant_conv(self.encoder(folded.transpose(1, 2))).permute(0, 2, 3, 4, 1)

    def paint(self, codes_NthwD: Tensor) -> Tensor:
        """Frames (N, 4t, 3, H, W) of quantised latents, not clipped."""
        codes_NDthw = codes_NthwD.permute(0, 4, 1, 2, 3).contiguous()
        painted = self.decoder(self.post_quant_conv(codes_NDthw), codes_NDthw).transpose(1, 2)
        return pixel_shuffle(painted, self.shape.patch) if self.shape.patch > 1 else painted

    @torch.no_grad()
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Codes of clips, or of stills (T = 1)."""
        grids = self.grids(pixels_NT3HW.shape[1], *pixels_NT3HW.shape[-2:])
        latent_MD = self.latent(pixels_NT3HW).flatten(0, 3)
        return Encoded(grids=grids, ids=self.codebook.nearest(latent_MD).view(len(pixels_NT3HW), -1))

    @torch.no_grad()
    def decode(self, encoded: Encoded) -> Tensor:
        """All frames: a still comes back as `temporal_stride` of them; the first is it (as in transformers)."""
        assert encoded.ids is not None
        codes_NLD = self.codebook.codes()[encoded.ids]
        return self.paint(codes_NLD.unflatten(1, encoded.grids[0])).clamp(-1, 1)

    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """Reconstruction through the codes, commitment and codebook loss."""
        latent_NthwD = self.latent(pixels_NT3HW)
        flat_MD = latent_NthwD.flatten(0, 3)
        codes_M = self.codebook.nearest(flat_MD)
        quantised_NthwD = self.codebook.codes()[codes_M].view_as(latent_NthwD)
        commitment = self.shape.commitment * mse_loss(latent_NthwD, quantised_NthwD.detach())
        if self.shape.codebook == "gradient":
            commitment = commitment + mse_loss(quantised_NthwD, latent_NthwD.detach())
        painted = self.paint(straight_through(latent_NthwD, quantised_NthwD))[:, : pixels_NT3HW.shape[1]]
        latents_NPD = flat_MD.detach().unflatten(0, (len(pixels_NT3HW), -1))
        codes_NP = codes_M.view(latents_NPD.shape[:2])
        return Painted(pixels=painted, terms={"commitment": commitment}, latents=latents_NPD, codes=codes_NP)

    def code_vectors(self) -> Tensor:
        """(K, D)."""
        return self.codebook.codes()

    def learn(self, latents_MD: Tensor, codes_M: Tensor, seed: int) -> int:
        """The codebook's moving averages and restarts."""
        return self.codebook.learn(
            latents_MD, codes_M, decay=self.shape.decay, dead_below=self.shape.dead_below, seed=seed
        )

    def load_published(self, state: Mapping[str, Tensor]) -> Emu3Tokenizer:
        """Take over a state dict of transformers' `Emu3VQVAE`; only the codebook has another name there."""
        renamed = {n.replace("quantize.embedding.", "codebook."): tensor for n, tensor in state.items()}
        own = {n: t for n, t in self.state_dict().items() if n in ("codebook.counts", "codebook.sums")}
        self.load_state_dict(renamed | own)
        return self
