"""Cost formulas, against torch's own counter on the trunk and against worked numbers of the literature notes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import flops
from models.attention import DocumentAttention
from models.flops import TrunkShape
from models.positions import document_positions
from models.trunk import Trunk, TrunkConfig

SHAPE = TrunkShape(layers=3, width=64, heads=4, kv_heads=2, ffn=160)
QWEN = TrunkShape(layers=28, width=3584, heads=28, kv_heads=4, ffn=18944)
QWEN_VOCABULARY = 152_064 + 32_768


def _counted(lengths: list[int], backward: bool) -> tuple[float, float]:
    """Matmul FLOPs and attention FLOPs counted by torch for documents of these lengths."""
    trunk = Trunk(TrunkConfig(shape=SHAPE, vocabulary_size=300)).initialise(0)
    tokens = torch.randint(300, (1, sum(lengths)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden = trunk(trunk.embedding(tokens), document_positions(lengths)[None], DocumentAttention(lengths))
        logits = hidden @ trunk.head.weight.T
        if backward:
            logits.sum().backward()
    by_op = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = by_op["aten.bmm"]
    return sum(by_op.values()) - attention, attention


@pytest.mark.parametrize("lengths", [[48], [10, 25, 3]])
def test_linear_and_head_cost_equals_torch_flop_counter(lengths: list[int]) -> None:
    spent = flops.causal_cost(SHAPE, 300, lengths, sum(lengths))
    matmuls, _ = _counted(lengths, backward=False)
    assert spent.linear + spent.head == matmuls
    with_backward, _ = _counted(lengths, backward=True)
    assert flops.TRAIN_OVER_FORWARD * (spent.linear + spent.head) == with_backward


def test_attention_cost_equals_torch_flop_counter() -> None:
    """Its plain kernel computes the full square of every document; ours counts the pairs that are attended."""
    lengths = [48, 17]
    square = flops.cost(SHAPE, 300, 0, sum(n * n for n in lengths), 0).attention
    assert _counted(lengths, backward=False)[1] == square
    assert _counted(lengths, backward=True)[1] == flops.TRAIN_OVER_FORWARD * square


@pytest.mark.parametrize(
    ("tokens", "linear", "attention", "head", "train"),
    [
        (1_024, 13.36, 0.21, 1.36, 44.8),
        (4_096, 53.46, 3.37, 5.43, 186.7),
        (16_384, 213.8, 53.9, 21.7, 868.2),
        (32_768, 427.6, 215.5, 43.4, 2059.7),
        (131_072, 1710.6, 3448.1, 173.7, 15997),
    ],
)
def test_worked_numbers(tokens: int, linear: float, attention: float, head: float, train: float) -> None:
    assert QWEN.layer_parameters == 233_046_016
    spent = flops.causal_cost(QWEN, QWEN_VOCABULARY, [tokens], tokens)
    for found, expected in zip(
        (spent.linear, spent.attention, spent.head, spent.train), (linear, attention, head, train), strict=True
    ):
        assert found / 1e12 == pytest.approx(expected, rel=2e-3, abs=6e-3)


def test_pairs_of_images_and_scales() -> None:
    assert flops.segment_pairs([(128, False), (1024, True)]) / flops.causal_pairs(1152) == pytest.approx(
        1.789, abs=1e-3
    )
    assert flops.segment_pairs([(5, False), (7, False)]) == flops.causal_pairs(12)
    prefix, scales = 9, [1, 4, 16]
    expected = prefix * (prefix + 1) // 2 + 1 * (9 + 1) + 4 * (9 + 5) + 16 * (9 + 21)
    assert flops.segment_pairs([(1, False)] * prefix + [(n, True) for n in scales]) == expected


def test_shape_refuses_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="kv_heads is 3"):
        TrunkShape(layers=1, width=64, heads=4, kv_heads=3, ffn=8)
