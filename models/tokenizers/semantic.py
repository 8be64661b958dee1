"""The semantic branch of NextFlow's tokenizer: SigLIP, or a small ViT, and what it is held to.

Legend: as in interface.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from models.tokenizers.shapes import NextFlowShape
from models.weights import pretrained

CLASSICAL = 9
"""Channels of `classical`."""


class SmallVit(nn.Module):
    """Patches through a matrix, 2-D sinusoidal positions, torch's encoder layers. Any number of places."""

    def __init__(self, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """(N, width, h, w)."""
        x_NChw = self.patches(pixels_N3HW)
        h, w = x_NChw.shape[-2:]
        x_NPC = x_NChw.flatten(2).transpose(1, 2) + positions(h, w, self.width).to(x_NChw)
        return self.layers(x_NPC).transpose(1, 2).unflatten(2, (h, w))


def positions(height: int, width: int, channels: int) -> Tensor:
    """(height * width, channels): sines and cosines of row and column (arXiv 2106.10270, appendix)."""
    quarter = channels // 4
    rates = 10_000 ** -(torch.arange(quarter) / max(1, quarter))
    rows, columns = (torch.arange(n)[:, None] * rates for n in (height, width))
    both = [torch.cat((a.sin(), a.cos()), 1) for a in (rows, columns)]
    table = torch.cat((both[0][:, None].expand(-1, width, -1), both[1][None].expand(height, -1, -1)), 2)
    return nn.functional.pad(table.flatten(0, 1), (0, channels - 4 * quarter))


class Siglip(nn.Module):
    """transformers' SigLIP or SigLIP2 vision tower, at any size: features of patches, laid on the tokenizer's grid."""

    def __init__(self, place: str, stride: int) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, Siglip2VisionModel, SiglipVisionModel
        except ImportError as error:
            raise ImportError("a SigLIP teacher needs transformers: pip install 'plait[weights]'") from error
        config = pretrained(AutoConfig, place)
        self.naflex = "siglip2" in config.model_type
        cls: Any = Siglip2VisionModel if self.naflex else SiglipVisionModel
        # a checkpoint of ours holds the configuration alone: the weights come with all the others
        alone = Path(place).is_dir() and not list(Path(place).glob("*.safetensors"))
        self.model: Any = cls(config) if alone else pretrained(cls, place, use_safetensors=True)
        self.stride = stride
        self.patch = int(self.model.config.patch_size)
        self.width = int(self.model.config.hidden_size)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """(N, width, h, w) of pixels in -1..1, as SigLIP's own processor gives them."""
        h, w = (side // self.stride for side in pixels_N3HW.shape[-2:])
        if self.patch != self.stride:
            pixels_N3HW = interpolate(
                pixels_N3HW, size=(h * self.patch, w * self.patch), mode="bicubic", antialias=True
            )
        if not self.naflex:
            found = self.model(pixel_values=pixels_N3HW, interpolate_pos_encoding=True).last_hidden_state
            return found.transpose(1, 2).unflatten(2, (h, w))
        patches = nn.functional.unfold(pixels_N3HW, self.patch, stride=self.patch)  # (N, 3 * p * p, places)
        patches = patches.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)  # channels last within a patch
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        sizes = torch.tensor([[h, w]] * len(patches), device=patches.device)
        found = self.model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=sizes).last_hidden_state
        return found.transpose(1, 2).unflatten(2, (h, w))


def classical(pixels_N3HW: Tensor, stride: int) -> Tensor:
    """(N, 9, h, w): mean colour and mean absolute gradients of every place: what stands for a teacher where none is."""
    across = nn.functional.pad(pixels_N3HW.diff(dim=3).abs(), (0, 1, 0, 0))
    down = nn.functional.pad(pixels_N3HW.diff(dim=2).abs(), (0, 0, 0, 1))
    return nn.functional.avg_pool2d(torch.cat((pixels_N3HW, 4 * across, 4 * down), 1), stride)


def distance(one_NChw: Tensor, other_NChw: Tensor) -> Tensor:
    """1 - cosine, mean over places (TokenFlow's code; its paper says L2)."""
    return 1 - (normalize(one_NChw, dim=1) * normalize(other_NChw, dim=1)).sum(1).mean()


def branch(shape: NextFlowShape) -> SmallVit | Siglip:
    """The trainable semantic encoder."""
    stride = shape.pixel.stride
    if shape.teacher:
        return Siglip(shape.teacher, stride)
    return SmallVit(stride, shape.semantic_width, shape.semantic_layers, shape.semantic_heads)
