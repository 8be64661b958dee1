"""The sizes that define each vision tokenizer, as plain settings; nothing here imports torch.

A shape is told from the others by its `kind`. Published sizes stand in `conf/tokenizer/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

_AS_BEFORE = "as_before"


def since(as_before: Any) -> Any:
    """Declare a size added after the first release: left out of identities while it equals `as_before`."""
    return field(default=as_before, metadata={_AS_BEFORE: as_before})


def plain(shape: Any) -> dict[str, Any]:
    """What names a shape: all fields, but later ones that stand at what went before them; towers likewise."""
    named = {f.name: getattr(shape, f.name) for f in fields(shape)}
    later = {f.name for f in fields(shape) if f.metadata.get(_AS_BEFORE, shape) == named[f.name]}
    return {name: plain(value) if is_dataclass(value) else value for name, value in named.items() if name not in later}


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A convolutional encoder and its mirror image (models/tokenizers/towers.py)."""

    patch: int
    """Pixels of the side of a square that the first matrix takes in at once; 1: the VQGAN of arXiv 2012.09841."""
    width: int
    """Channels at the first resolution."""
    multipliers: tuple[int, ...]
    """Channels of each resolution over `width`; every resolution after the first halves both sides."""
    blocks: int
    """Residual blocks at each resolution."""
    norm_groups: int = 32
    """Groups of the normalisation in every block; 0: none."""
    attention: bool = False
    """Self-attention among the places of the lowest resolution."""

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.patch, self.width, self.blocks, *self.multipliers) < 1:
            raise ValueError("patch, width, blocks and multipliers of a tower are whole numbers above 0")
        if self.norm_groups and any(self.width * m % self.norm_groups for m in self.multipliers):
            raise ValueError(f"norm_groups={self.norm_groups} does not divide the width {self.width} of the tower")

    @property
    def stride(self) -> int:
        """Pixels of the side of the square that one place of the grid stands for."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class VqShape:
    """A 2-D VQ-VAE of single frames (Chameleon, LlamaGen and Janus, SimpleAR): models/tokenizers/vq.py."""

    kind: Literal["vq"]
    tower: TowerShape
    codebook_size: int
    """K, number of codes."""
    code_dim: int
    """D, size of a code."""
    normalised: bool = False
    """Compare directions, not vectors (LlamaGen: both of length 1)."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How codes learn: moving averages (arXiv 1711.00937, appendix A.1), or a loss."""
    decay: float = 0.95
    """Of the moving averages, a step."""
    dead_below: float = 0.05
    """A code used less often than this, times a batch, restarts at a latent of the batch; 0: never."""
    commitment: float = 0.25
    """Weight of the commitment loss (arXiv 1711.00937, equation 3)."""
    rate: float = since(0.0)
    """Price of rare codes beside the distance (models/tokenizers/quantise.py): keeps codes off what is all but the
    same, and what a model has to predict small. 0: the nearest code."""
    restart: Literal["any", "far"] = since("any")
    """Where dead codes restart: at any latent, or the likelier the further it lies from its code."""

    def __post_init__(self) -> None:
        if self.rate < 0 or (self.rate and self.codebook == "gradient"):
            raise ValueError(
                f"rate={self.rate} with codebook={self.codebook}: give 0, or a price above 0 with codebook=ema"
            )


@dataclass(frozen=True, kw_only=True)
class Emu3Shape:
    """Emu3's 3-D MoVQ (arXiv 2409.18869; transformers' `Emu3VQVAE`): models/tokenizers/emu3.py."""

    kind: Literal["emu3"]
    codebook_size: int = 32_768
    """K, number of codes."""
    code_dim: int = 4
    """D, size of a code, and channels of everything in time."""
    patch: int = 1
    """Pixels of the side of a square that is folded into channels first; published: 1."""
    width: int = 256
    """Channels at the first resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of each resolution over `width`; every resolution after the first halves both sides."""
    blocks: int = 2
    """Residual blocks at each resolution, and temporal ones in encoder and decoder."""
    temporal_stride: int = 4
    """Frames that one place of the grid stands for; an image is repeated that often."""
    norm_groups: int = 32
    attention: bool = True
    """At the lowest resolution."""
    codebook: Literal["ema", "gradient"] = "gradient"
    decay: float = 0.95
    dead_below: float = 0.0
    commitment: float = 0.25


@dataclass(frozen=True, kw_only=True)
class NextFlowShape:
    """TokenFlow's two branches under one index, multi-scale as NextFlow has it: models/tokenizers/nextflow.py."""

    kind: Literal["nextflow"]
    pixel: TowerShape
    """The pixel branch."""
    scales: tuple[int, ...]
    """Sides of the square grids from coarse to fine; other shapes are derived (models/tokenizers/scales.py)."""
    codebook_size: int = 32_768
    """K rows, in both codebooks."""
    semantic_dim: int = 32
    pixel_dim: int = 8
    pixel_weight: float = 1.0
    """Of the pixel distance beside the semantic one (w_dis, arXiv 2412.03069, equation 3)."""
    semantic_width: int = 768
    """Of the small ViT that is the semantic branch where no `teacher` is named."""
    semantic_layers: int = 12
    semantic_heads: int = 12
    teacher: str | None = None
    """SigLIP2 of transformers: a folder or an id of the hub; it starts the branch and is what it is held to."""
    normalised: bool = True
    """Compare directions, not vectors (TokenFlow)."""
    codebook: Literal["ema", "gradient"] = "gradient"
    decay: float = 0.95
    dead_below: float = 0.0
    commitment: float = 0.25
    """All four as in VqShape."""
    scale_drop: float = 0.5
    """Probability that a scale, but the finest, is left out of a training step (NextFlow: 50 %)."""
    semantic_loss: float = 1.0
    """Weight of 1 - cosine between the semantic decoder's output and the teacher's features."""
    correction_top_k: int = 10
    """Self-correction: inputs are drawn among this many nearest codes (not published; a setting)."""
    correction_share: float = 0.6
    """Share of tokens whose input is drawn (arXiv 2601.02204: 60 %); 0: none."""
    correction_temperature: float = 1.0
    """Of the softmax over minus the distances (not published; a setting)."""
    joint: bool = True
    """Whether the semantic branch has a part in the index: not before the joint phase. Set by training."""
    rate: float = since(0.0)
    restart: Literal["any", "far"] = since("any")
    """Both as in VqShape."""
    residual: bool = since(True)
    """Whether a scale says what the coarser ones left (VAR); else each says the whole picture and the finest alone is
    decoded: what a code says then does not hang on what the coarser ones happened to say."""

    def __post_init__(self) -> None:
        if self.rate and (self.normalised or self.codebook == "gradient"):
            raise ValueError(f"rate={self.rate} needs codebook=ema and normalised=false: give both, or 0")

    deepened: bool = False
    """Whether the pixel decoder has been doubled. Set by training."""


@dataclass(frozen=True, kw_only=True)
class VaeShape:
    """A KL-VAE, diffusers' `AutoencoderKL` (Transfusion, UniFluid): models/tokenizers/vae.py."""

    kind: Literal["vae"]
    latent_channels: int = 8
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each resolution; every one after the first halves both sides."""
    blocks: int = 2
    norm_groups: int = 32
    patch: int = 2
    """Side of the square of latents that makes one place of the grid (Transfusion: 2)."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    kl_weight: float = 1e-6
    """Of the divergence from the standard normal, nats a pixel."""


@dataclass(frozen=True, kw_only=True)
class PublishedShape:
    """Weights that somebody published, as they are: models/tokenizers/published.py."""

    kind: Literal["published"]
    library_class: Literal["Emu3VQVAE", "ChameleonVQVAE", "JanusVQVAE", "AutoencoderKL"]
    place: str
    """A local folder, or an id of the hub (`name@revision`)."""
    patch: int = 2
    """Of AutoencoderKL, as in VaeShape."""


Shape = VqShape | Emu3Shape | NextFlowShape | VaeShape | PublishedShape
