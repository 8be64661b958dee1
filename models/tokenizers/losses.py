"""What judges reconstructions beside their error: LPIPS, where weights are given, and a patch discriminator.

Legend: N pictures (N, 3, H, W) in -1..1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the convolutions between poolings (arXiv 1409.1556, table 1, D): LPIPS reads the last of each."""
VGG_FILES, HEAD_FILES = ("vgg16.safetensors", "vgg16.pth"), ("lpips.safetensors", "lpips.pth", "vgg.pth")
_EPS = 1e-10


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al., arXiv 1801.03924, equation 1; version 0.1, VGG16).

    `folder` holds VGG16's features under torchvision's names (vgg16.safetensors or .pth: features.0.weight ...) and the
    five heads under lpips' names (lpips.safetensors, or the package's own vgg.pth: lin0.model.1.weight ...). Nothing is
    measured with weights that were not given.
    """

    mean: Tensor
    """Of the scaling layer, of pixels in -1..1."""
    deviation: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        features, heads = _state(folder, VGG_FILES), _state(folder, HEAD_FILES)
        self.stages = nn.ModuleList()
        width_in, place = 3, 0
        for widths in _VGG16:
            convs = nn.ModuleList()
            for width in widths:
                conv = nn.Conv2d(width_in, width, 3, padding=1)
                named = {kind: features[f"features.{place}.{kind}"] for kind in ("weight", "bias")}
                conv.load_state_dict(named)
                convs.append(conv)
                width_in, place = width, place + 2  # a rectifier stands behind each
            self.stages.append(convs)
            place += 1  # the pooling
        self.heads = nn.ParameterList(
            next(t for n, t in heads.items() if n.startswith(f"lin{i}.")).float() for i in range(len(_VGG16))
        )
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, pictures_N3HW: Tensor) -> list[Tensor]:
        """Of each of the five stages, every place's channels of length 1."""
        x = (pictures_N3HW - self.mean) / self.deviation
        found: list[Tensor] = []
        for place, convs in enumerate(self.stages):
            if place:
                x = nn.functional.max_pool2d(x, 2)
            for conv in convs:  # type: ignore[attr-defined]
                x = relu(conv(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPS))
        return found

    def forward(self, one_N3HW: Tensor, other_N3HW: Tensor) -> Tensor:
        """(N) distances."""
        pairs = zip(self.heads, self.features(one_N3HW), self.features(other_N3HW), strict=True)
        parts = [((a - b).square() * head).sum(1).mean((1, 2)) for head, a, b in pairs]
        return torch.stack(parts).sum(0)


def _state(folder: Path, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"LPIPS needs {' or '.join(names)} in {folder}: put the published file there")
    loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return loaded


class PatchDiscriminator(nn.Module):
    """Real or painted, patch by patch (arXiv 1611.07004, section 3.2.2; VQGAN, arXiv 2012.09841): 70 pixels at depth 3.

    Group normalisation where the original has that of the batch: no judgement depends on other pictures.
    """

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2 if level < depth - 1 else 1, padding=1)
            for level, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(min(32, b), b) for b in widths[1:])
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, pictures_N3HW: Tensor) -> Tensor:
        """(N, 1, h, w) logits, above 0 for real."""
        x = leaky_relu(self.first(pictures_N3HW), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = leaky_relu(norm(conv(x)), 0.2)
        return self.last(x)


def hinge_loss(real: Tensor, painted: Tensor) -> Tensor:
    """The discriminator's (VQGAN; arXiv 1705.02894): 0 where real is above 1 and painted below -1."""
    return 0.5 * (relu(1 - real).mean() + relu(1 + painted).mean())
