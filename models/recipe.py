"""What stands around the trunk, as plain settings; nothing here imports torch.

With a layout (models/layout.py) and a trunk these are all the choices of a recipe: `conf/recipe/*.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Embedders, positions, heads and the weights of the objectives."""

    positions: Literal["line", "scales"] = "line"
    """1-D RoPE, or NextFlow's multiscale 3-D RoPE over (row, column, scale)."""
    span: float = 64.0
    """Range of rows and columns of every scale (NextFlow's C; not published)."""
    scale_embeddings: bool = False
    """A learnt vector for each scale, and a sinusoidal one for their number (NextFlow)."""
    max_scales: int = 32
    """Learnt vectors of scales."""
    code_vectors: Literal["drawn", "codebook"] = "drawn"
    """Where embeddings of visual codes begin: at random, or at the tokenizer's codebook (NextFlow)."""
    code_head: Literal["shared", "own"] = "shared"
    """One embedding and head for text and codes; or codes through vectors of the codebook and an MLP, and a head of
    their own (Janus)."""
    z_loss: float = 0.0
    """Weight of log^2 of the softmax's sum (Chameleon: 1e-5)."""
    patches: Literal["linear", "unet"] = "linear"
    """How latents enter and leave the trunk (Transfusion): a matrix, or a small U-Net over 2x2 of them."""
    diffusion_weight: float = 5.0
    """Of the noise's mean squared error, a mean over pictures (Transfusion)."""
    noise_steps: int = 1000
    """Of the cosine schedule."""
    max_noise_before_text: int = 500
    """Highest noise step of a picture that text follows (Transfusion: 500 of 1000)."""
