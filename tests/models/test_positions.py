"""Rotary positions of several axes, against transformers' own."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, apply_rotary_pos_emb

from models.positions import rope_table, rotate, sections

HEAD, BASE, AXES, SHARES = 32, 10_000.0, 3, (6, 6, 4)


def heads(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys (2, 4, 9, 32), and whole positions of three axes (2, 9, 3)."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 4, 9, HEAD, generator=draw) for _ in range(2))
    return q, k, torch.randint(0, 60, (2, 9, AXES), generator=draw)


def test_sections_are_those_of_qwen2_5_vl() -> None:
    q, k, places_BTA = heads(0)
    assert sections((3, 3, 2), HEAD // 2) == SHARES
    rope = {"rope_type": "default", "rope_theta": BASE, "mrope_section": list(SHARES)}
    config = Qwen2_5_VLTextConfig(hidden_size=4 * HEAD, num_attention_heads=4, rope_parameters=rope)
    theirs: Any = Qwen2_5_VLRotaryEmbedding
    wanted = apply_rotary_pos_emb(q, k, *theirs(config)(q, places_BTA.permute(2, 0, 1)))
    table = rope_table(places_BTA, HEAD, BASE, SHARES)
    for ours, other in zip((rotate(q, table), rotate(k, table)), wanted, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


def test_text_turns_as_with_one_axis() -> None:
    q, _, _ = heads(1)
    line_BT = torch.arange(9).expand(2, 9)
    table = rope_table(line_BT[..., None].expand(2, 9, AXES), HEAD, BASE, SHARES)
    assert torch.equal(rotate(q, table), rotate(q, rope_table(line_BT, HEAD, BASE)))
