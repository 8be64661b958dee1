"""The attention kernels, against the dense rule."""

from __future__ import annotations

import pytest
import torch

from models.attention import DenseAttention, DocumentAttention, may_see
from models.kernels import FlexAttention, VarlenAttention


def _rule(kind: str, tokens: int) -> dict[str, torch.Tensor | None]:
    """Documents, orders and groups of a pack of that many tokens."""
    one = torch.zeros(tokens, dtype=torch.long)
    places = torch.arange(tokens)
    several = torch.bucketize(places, torch.tensor([tokens // 5, tokens // 2]))
    groups = torch.where(places % 16 < 9, places // 16, -1)
    shuffled = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))
    return {
        "causal": {"document_T": one},
        "documents": {"document_T": several},
        "groups": {"document_T": several, "group_T": groups},
        "orders": {"document_T": several, "order_T": shuffled, "group_T": groups},
    }[kind]


def _heads(tokens: int, heads: int = 4, kv_heads: int = 2, size: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, tokens, size) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("tokens", [128, 200])
@pytest.mark.parametrize("kind", ["causal", "documents", "groups", "orders"])
def test_flex_equals_the_dense_rule(kind: str, tokens: int, kv_heads: int) -> None:
    rule = _rule(kind, tokens)
    q, k, v = _heads(tokens, kv_heads=kv_heads)
    dense = DenseAttention(may_see(**rule))(0, q, k, v, 0.0)
    torch.testing.assert_close(FlexAttention(**rule)(0, q, k, v, 0.0), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "documents", "groups", "orders"])
def test_a_block_is_skipped_if_and_only_if_nobody_in_it_may_be_seen(kind: str) -> None:
    rule = _rule(kind, 512)
    seen = may_see(**rule).view(4, 128, 4, 128).any(3).any(1)
    assert torch.equal(FlexAttention(**rule).mask.to_dense()[0, 0].bool(), seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch differentiates FlexAttention on CUDA only")
@pytest.mark.parametrize("kind", ["causal", "documents", "groups", "orders"])
def test_flex_gradients_equal_the_dense_rule(kind: str) -> None:
    rule = {name: ids.cuda() for name, ids in _rule(kind, 256).items()}
    ours, theirs = ([x.cuda().requires_grad_() for x in _heads(256)] for _ in range(2))
    FlexAttention(**rule)(0, *ours, 0.0).square().sum().backward()
    DenseAttention(may_see(**rule))(0, *theirs, 0.0).square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the varlen kernel exists on CUDA only")
def test_varlen_equals_documents() -> None:
    lengths = [40, 1, 87]
    ours, theirs = ([x.cuda().bfloat16().requires_grad_() for x in _heads(128, size=64)] for _ in range(2))
    out, expected = VarlenAttention(lengths)(0, *ours, 0.0), DocumentAttention(lengths)(0, *theirs, 0.0)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    out.sum().backward()
    expected.sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=5e-2, atol=5e-2)


def test_what_a_kernel_cannot_do_is_refused() -> None:
    q, k, v = _heads(8)
    with pytest.raises(ValueError, match="no dropout"):
        FlexAttention(torch.zeros(8))(0, q, k, v, 0.1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs CUDA"):
            VarlenAttention([8])(0, q, k, v, 0.0)
