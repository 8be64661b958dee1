"""The chunked cross-entropy, against dense cross-entropy in double precision."""

from __future__ import annotations

import pytest
import torch

from models import objectives
from models.objectives import linear_cross_entropy


def _dense(hidden, head, target, weight, divisor):
    nll = torch.nn.functional.cross_entropy(hidden @ head.T, target, reduction="none")
    return (nll * weight).sum() / divisor, nll


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_equals_dense_in_value_and_both_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_ROWS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(50, 12, dtype=torch.float64, requires_grad=True)
    head = torch.randn(31, 12, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(31, (50,)), torch.rand(50, dtype=torch.float64)
    weight[::3] = 0
    loss, nll = linear_cross_entropy(hidden, head, target, weight, 4.5)
    (loss * 3).backward()
    got = [hidden.grad.clone(), head.grad.clone()]
    hidden.grad = head.grad = None
    expected, dense_nll = _dense(hidden, head, target, weight, 4.5)
    (expected * 3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[0], hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], head.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nll[weight > 0], dense_nll[weight > 0].detach(), rtol=1e-12, atol=1e-12)
    assert (got[0][::3] == 0).all()


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
