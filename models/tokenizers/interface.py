"""What every vision tokenizer can do: clips to codes or latents, and back.

Legend: N clips of one shape, T frames of H x W pixels in -1..1; t x h x w places of a grid; L codes of a clip, grid
after grid, each in raster order; M codes of a batch; C channels; D size of a code; K codes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.tokenizers import shapes

WEIGHTS_FILE, SHAPE_FILE = "tokenizer.safetensors", "tokenizer.json"
Grid = tuple[int, int, int]
"""Frames, rows and columns of places."""

_KINDS = {
    "vq": ("vq", "VqTokenizer", shapes.VqShape),
    "emu3": ("emu3", "Emu3Tokenizer", shapes.Emu3Shape),
    "nextflow": ("nextflow", "NextFlowTokenizer", shapes.NextFlowShape),
    "vae": ("vae", "VaeTokenizer", shapes.VaeShape),
    "published": ("published", "PublishedTokenizer", shapes.PublishedShape),
}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """N clips of one shape, encoded."""

    grids: tuple[Grid, ...]
    """One; of multi-scale tokenizers one per scale, frame after frame."""
    ids: Tensor | None = None
    """(N, L) codes: what a model is to predict."""
    input_ids: Tensor | None = None
    """(N, L) codes that a model is shown instead, where self-correction draws them; else None."""
    latents: Tensor | None = None
    """(N, t, h, w, C), float16, of tokenizers without codes."""

    def __post_init__(self) -> None:
        assert (self.ids is None) != (self.latents is None)


@dataclass(frozen=True, kw_only=True)
class Painted:
    """What training needs of one pass."""

    pixels: Tensor
    """(N, T, 3, H, W), not clipped."""
    terms: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The tokenizer's own losses by name, already weighted: commitment, KL, distillation ..."""
    latents: Tensor | None = None
    """(N, P, D) before quantisation, detached, P of each sample, for the codebook's own step."""
    codes: Tensor | None = None
    """(N, P) of the latents."""


class VisionTokenizer(nn.Module, ABC):
    """Clips to codes (or latents) and back. What comes out for a clip depends on that clip alone."""

    kind: ClassVar[str]
    shape: Any
    codebook_size: int
    """K; 0 where there are latents instead of codes."""
    stride: tuple[int, int]
    """Frames, and pixels of a side, that one place of the finest grid stands for."""
    decodes: bool = True
    """Whether it can paint: a published encoder may come alone."""

    @abstractmethod
    def grids(self, frames: int, height: int, width: int) -> tuple[Grid, ...]:
        """The grids of a clip of this many frames and pixels; ValueError where they are no multiple of the stride."""

    @abstractmethod
    def encode(self, pixels_NT3HW: Tensor) -> Encoded:
        """Codes or latents; no gradient."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> Tensor:
        """(N, T, 3, H, W) in -1..1, of the targets (`ids`); no gradient."""

    @abstractmethod
    def forward(self, pixels_NT3HW: Tensor, seed: int, places: Sequence[int] | None = None) -> Painted:
        """One training pass over the samples at these places of the step (all of it, where none are given).

        What is random about the step is drawn from the seed, what is random about a sample from the seed and its place.
        """

    def learn(self, latents_MD: Tensor, codes_M: Tensor, seed: int) -> int:
        """The codebook's own step over all latents of the step, of all workers; returns how many codes restarted."""
        return 0

    def code_vectors(self) -> Tensor | None:
        """(K, D) the codebook, in order of the codes; None where there is none."""
        return None

    def phase(self, name: str) -> None:
        """Choose what is trained from now on; "all" is known to every tokenizer."""
        if name != "all":
            raise ValueError(f"the tokenizer {self.kind} has no phase {name!r}: use all")

    def checked(self, frames: int, height: int, width: int) -> None:
        """Refuse sizes that are no multiple of the stride, for `grids`."""
        time, space = self.stride
        if frames % time or height % space or width % space or min(frames, height, width) < 1:
            raise ValueError(
                f"{frames} frames of {height}x{width} pixels do not fit the tokenizer: give multiples of {time} frames"
                f" and of {space} pixels"
            )

    def digest(self) -> str:
        """SHA-256 of the shape and of everything that decides codes and pictures."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True, default=str).encode())
        digest.update(self.weights_digest())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What is no tensor and decides codes and pictures; never a path."""
        return shapes.plain(self.shape)

    def weights_digest(self) -> bytes:
        """SHA-256 of all tensors, by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(name.encode() + raw.numpy().tobytes())
        return digest.digest()

    def copied(self) -> dict[str, Tensor]:
        """Copies of the weights for `save`, which may then be changed."""
        return {name: copy_of(tensor) for name, tensor in self.state_dict().items()}

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Weights (these, copied before, or those of now) and shape into a folder."""
        save_file(dict(self.copied() if weights is None else weights), folder / WEIGHTS_FILE)
        (folder / SHAPE_FILE).write_text(json.dumps(shapes.plain(self.shape), indent=1, sort_keys=True))


def copy_of(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and its own whatever becomes of the tensor."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def build(shape: shapes.Shape) -> VisionTokenizer:
    """A tokenizer with fresh weights, drawn from torch's global generator."""
    module, name, _ = _KINDS[shape.kind]
    found: VisionTokenizer = getattr(importlib.import_module(f"models.tokenizers.{module}"), name)(shape)
    return found


def load_tokenizer(folder: Path) -> VisionTokenizer:
    """The tokenizer of a checkpoint folder, in evaluation mode."""
    plain = json.loads((folder / SHAPE_FILE).read_text())
    module, name, shape = _KINDS[plain["kind"]]
    cls: Any = getattr(importlib.import_module(f"models.tokenizers.{module}"), name)
    if hasattr(cls, "from_folder"):
        found: VisionTokenizer = cls.from_folder(folder, _shaped(shape, plain))
    else:
        found = cls(_shaped(shape, plain))
        found.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return found.eval()


def _shaped(cls: Any, plain: Mapping[str, Any]) -> Any:
    """A shape from what JSON gave: lists are tuples, towers are towers. ValueError where it has a size of another
    version."""
    if strange := sorted(plain.keys() - {one.name for one in fields(cls)}):
        raise ValueError(
            f"the tokenizer's {SHAPE_FILE} has {strange[0]}, which this version does not know: train it again, or take"
            " the version that wrote it"
        )
    return cls(**dict(_values(plain)))


def _values(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield name, _shaped(shapes.TowerShape, value)
        else:
            yield name, tuple(value) if isinstance(value, list) else value


def to_pixels(frames_NTHW3: Tensor) -> Tensor:
    """Frames of bytes (..., H, W, 3) as floats -1..1, (..., 3, H, W)."""
    return frames_NTHW3.movedim(-1, -3).float() / 127.5 - 1


def to_bytes(pixels_NT3HW: Tensor) -> Tensor:
    """The inverse of `to_pixels`, rounded and clipped."""
    return ((pixels_NT3HW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
