"""The chunked cross-entropy, against dense cross-entropy in double precision."""

from __future__ import annotations

import pytest
import torch

from models import objectives
from models.objectives import linear_cross_entropy


def _dense(hidden, head, target, weight, divisor, z_loss=0.0):
    logits = hidden @ head.T
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    squared = torch.logsumexp(logits, dim=-1).square()
    return (nll * weight).sum() / divisor + z_loss * (squared * weight).sum() / divisor, nll


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_equals_dense_in_value_and_both_gradients(rows: int, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_BYTES", rows * 31 * 8)
    torch.manual_seed(0)
    hidden = torch.randn(50, 12, dtype=torch.float64, requires_grad=True)
    head = torch.randn(31, 12, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(31, (50,)), torch.rand(50, dtype=torch.float64)
    weight[::3] = 0
    loss, nll = linear_cross_entropy(hidden, head, target, weight, 4.5, z_loss=z_loss)
    (loss * 3).backward()
    got = [hidden.grad.clone(), head.grad.clone()]
    hidden.grad = head.grad = None
    expected, dense_nll = _dense(hidden, head, target, weight, 4.5, z_loss)
    (expected * 3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[0], hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], head.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nll[weight > 0], dense_nll[weight > 0].detach(), rtol=1e-12, atol=1e-12)
    assert (got[0][::3] == 0).all() and (nll[::3] == 0).all()


@pytest.mark.parametrize("rows", [5, 64])
def test_bf16_stays_near_double_precision(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loosely: the bound is 2% of the largest entry, some four roundings of bf16 (2^-8 each)."""
    monkeypatch.setattr(objectives, "CHUNK_BYTES", rows * 97 * 4)
    torch.manual_seed(3)
    hidden, head = (torch.randn(n, 24).div(4).bfloat16().requires_grad_() for n in (64, 97))
    target, weight = torch.randint(97, (64,)), torch.rand(64)
    loss, _ = linear_cross_entropy(hidden, head, target, weight, weight.sum(), z_loss=0.01)
    loss.backward()
    assert hidden.grad.dtype == head.grad.dtype == torch.bfloat16 and loss.dtype == torch.float32
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    expected, _ = _dense(*exact, target, weight.double(), weight.double().sum(), 0.01)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=3e-3, atol=0)
    for ours, theirs in zip((hidden, head), exact, strict=True):
        assert (ours.grad.double() - theirs.grad).abs().max() < 0.02 * theirs.grad.abs().max()


def test_gradient_of_the_head_is_summed_in_fp32_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bf16 sum of 4096 equal addends stops growing at 256 of them: 2^8 + 1 rounds to 2^8."""
    monkeypatch.setattr(objectives, "CHUNK_BYTES", 2 * 4)
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, head, torch.zeros(4096, dtype=torch.long), torch.ones(4096), 1.0)
    loss.backward()
    assert head.grad.flatten().tolist() == [-2048, 2048]


def test_large_logits_neither_overflow_nor_lose_the_target() -> None:
    hidden, head = torch.tensor([[300.0]]), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss, nll = linear_cross_entropy(hidden, head, torch.tensor([1]), torch.ones(1), 1.0, z_loss=1e-5)
    loss.backward()
    assert nll.item() == 600 and loss.item() == pytest.approx(600 + 1e-5 * 300**2)
    assert torch.isfinite(head.grad).all()


def test_only_rows_with_weight_reach_the_matmul() -> None:
    hidden = torch.full((4, 3), torch.nan)
    hidden[2] = 0
    head = torch.ones(5, 3, requires_grad=True)
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0])
    loss, nll = linear_cross_entropy(hidden, head, torch.zeros(4, dtype=torch.long), weight, 1.0, z_loss=1e-5)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(nll).all() and torch.isfinite(head.grad).all()


def test_second_backward_pass_is_refused() -> None:
    hidden, head = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, head, torch.zeros(5, dtype=torch.long), torch.ones(5), 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_empty_supervised_set_gives_zero_with_a_live_graph() -> None:
    hidden, head = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, head, torch.zeros(5, dtype=torch.long), torch.zeros(5), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert (hidden.grad == 0).all() and (head.grad == 0).all()


def test_parts_of_a_batch_add_up_to_the_whole_under_one_divisor() -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(40, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    target, weight = torch.randint(11, (40,)), torch.rand(40, dtype=torch.float64)
    whole, _ = linear_cross_entropy(hidden, head, target, weight, weight.sum())
    parts = [
        linear_cross_entropy(hidden[s], head, target[s], weight[s], weight.sum())[0]
        for s in (slice(0, 9), slice(9, 40))
    ]
    torch.testing.assert_close(sum(parts), whole)
