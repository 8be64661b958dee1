"""The decoder and its attention, against a naive re-implementation that shares no code."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import DenseAttention, DocumentAttention, may_see
from models.flops import TrunkShape
from models.positions import document_positions
from models.trunk import Trunk, TrunkConfig

SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)


def _trunk(**kwargs) -> Trunk:
    return (
        Trunk(TrunkConfig(shape=SHAPE, vocabulary_size=50, rope_base=10_000.0, **kwargs)).initialise(3).double().eval()
    )


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE of one vector, two numbers at a time."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position * 10_000.0 ** (-2 * i / len(x))
        a, b = x[i], x[i + half]
        out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return out


def _naive(trunk: Trunk, tokens: list[int]) -> torch.Tensor:
    """Hidden states of one document, position by position and head by head."""
    weights = dict(trunk.named_parameters())
    x = weights["embedding.weight"][tokens]
    for layer in range(SHAPE.layers):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in weights.items()}
        y = _rms(x, w["attention_norm.weight"])
        q = (y @ w["attention.q.weight"].T).view(len(tokens), 4, 8)
        k, v = (y @ w["attention.kv.weight"].T).view(len(tokens), 2, 2, 8).unbind(1)
        if "attention.q_norm.weight" in w:
            q, k = _rms(q, w["attention.q_norm.weight"]), _rms(k, w["attention.k_norm.weight"])
        mixed = torch.zeros(len(tokens), 4, 8, dtype=x.dtype)
        for head in range(4):
            turned_k = [_turned(k[p, head // 2], p) for p in range(len(tokens))]
            for p in range(len(tokens)):
                mine = _turned(q[p, head], p)
                scores = torch.stack([mine @ turned_k[s] / math.sqrt(8) for s in range(p + 1)])
                mixed[p, head] = torch.softmax(scores, 0) @ v[: p + 1, head // 2]
        x = x + mixed.flatten(1) @ w["attention.out.weight"].T
        gate, up = (_rms(x, w["ffn_norm.weight"]) @ w["ffn.gate_up.weight"].T).chunk(2, -1)
        x = x + (gate * torch.sigmoid(gate) * up) @ w["ffn.down.weight"].T
    return _rms(x, weights["norm.weight"])


@torch.no_grad()
def test_trunk_equals_a_naive_decoder() -> None:
    for qk_norm in ("none", "rms"):
        trunk = _trunk(qk_norm=qk_norm)
        tokens = [7, 3, 49, 0, 7, 12]
        ours = trunk(trunk.embedding(torch.tensor([tokens])), torch.arange(6)[None], DocumentAttention([6]))[0]
        torch.testing.assert_close(ours, _naive(trunk, tokens), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other() -> None:
    trunk, lengths = _trunk(), [5, 1, 9]
    tokens = torch.randint(50, (1, 15), generator=torch.Generator().manual_seed(0))
    packed = trunk(trunk.embedding(tokens), document_positions(lengths)[None], DocumentAttention(lengths))
    alone = [trunk(trunk.embedding(part), torch.arange(part.shape[1])[None], DocumentAttention([part.shape[1]]))
             for part in tokens.split(lengths, 1)]  # fmt: skip
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_document_attention_equals_the_dense_rule(lengths: list[int]) -> None:
    total = sum(lengths)
    q, k, v = (torch.randn(2, heads, total, 8, dtype=torch.float64) for heads in (4, 2, 2))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    dense = DenseAttention(may_see(document))(0, q, k, v, 0.0)
    torch.testing.assert_close(DocumentAttention(lengths)(0, q, k, v, 0.0), dense)


def test_the_one_rule_by_hand() -> None:
    """Two documents; in the first an image of two tokens that see each other."""
    document, group = torch.tensor([0, 0, 0, 1]), torch.tensor([-1, 5, 5, -1])
    expected = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert may_see(document, group_T=group).int().tolist() == expected
    order = torch.tensor([0, 2, 1, 0])
    assert may_see(document, order)[1, 2] and not may_see(document, order)[2, 1]


def test_positions_start_again_in_every_document() -> None:
    assert document_positions([3, 1, 2]).tolist() == [0, 1, 2, 0, 0, 1]


def test_first_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = _trunk().state_dict()
    torch.manual_seed(6)
    assert all(torch.equal(one[name], value) for name, value in _trunk().state_dict().items())
