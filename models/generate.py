"""Sampling. Legend: B batch, T tokens, V vocabulary, D width.

Images are decoded under the layout's constraint (models/emu3_format.allowed): at places where only a mark may stand
the mark is put, elsewhere only visual codes compete, so that whatever the logits say the result parses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.attention import CachedAttention
from models.emu3_format import Grid, allowed, frame_tokens
from models.trunk import Trunk
from models.vocabulary import Vocabulary


def sample(logits_BV: Tensor, temperature: float, top_k: int, generator: torch.Generator | None = None) -> Tensor:
    """(B) drawn ids; temperature 0 takes the most likely one, top_k 0 keeps all."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    if 0 < top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return torch.multinomial(torch.softmax(logits_BV / temperature, -1), 1, generator=generator)[:, 0]


@torch.no_grad()
def generate_images(
    trunk: Trunk,
    vocabulary: Vocabulary,
    prompts: Sequence[list[int]],
    grid: Grid,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Tensor:
    """(B, t*h*w) visual codes after prompts that end with img, one grid for the batch, with a KV cache."""
    device = trunk.head.weight.device
    longest = max(map(len, prompts))
    tokens_BT = torch.full((len(prompts), longest), vocabulary.pad, device=device)
    real_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        real_BT[row, longest - len(prompt) :] = True
    positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
    attend = CachedAttention(real_BT)
    generator = torch.Generator(device).manual_seed(seed)
    visual = slice(vocabulary.visual_offset, vocabulary.visual_offset + vocabulary.codebook_size)
    codes: list[Tensor] = []
    for offset in range(1, grid[0] * frame_tokens(grid) + 1):
        hidden_BTD = trunk(trunk.embedding(tokens_BT), positions_BT, attend)
        mark = allowed(offset, grid, vocabulary)
        if mark is None:
            logits_BV = (hidden_BTD[:, -1] @ trunk.head.weight[visual].T).float()
            codes.append(sample(logits_BV, temperature, top_k, generator))
            tokens_BT = codes[-1][:, None] + vocabulary.visual_offset
        else:
            tokens_BT = torch.full((len(prompts), 1), mark, device=device)
        positions_BT = positions_BT[:, -1:] + 1
    return torch.stack(codes, dim=1)
