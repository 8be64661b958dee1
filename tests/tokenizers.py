"""A tokenizer that is small and quick, for tests of what stands around it."""

import torch

from models.tokenizers.shapes import TowerShape, VqShape
from models.tokenizers.vq import VqTokenizer


def vq_shape(codebook_size: int = 24, **settings) -> VqShape:
    """8x8 pixels a code."""
    tower = TowerShape(patch=4, width=8, multipliers=(1, 2), blocks=1, norm_groups=0)
    return VqShape(**{"kind": "vq", "tower": tower, "codebook_size": codebook_size, "code_dim": 4} | settings)


def vq(seed: int = 0, codebook_size: int = 24, **settings) -> VqTokenizer:
    """With fresh weights and codes that are spread out."""
    torch.manual_seed(seed)
    tokenizer = VqTokenizer(vq_shape(codebook_size, **settings)).eval()
    with torch.no_grad():
        tokenizer.codebook.weight.normal_()
    return tokenizer
