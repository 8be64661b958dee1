"""Prefix-GRPO: only the prefix learns, constant rewards say nothing, the first step is on policy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.preference import advantages, prefix_grpo
from models.tokenizers.scales import NEXTFLOW, scale_weights

WEIGHTS = torch.tensor(scale_weights([(side, side) for side in NEXTFLOW[:12]]), dtype=torch.float64)


def drawn(seed: int) -> torch.Tensor:
    return -10 * torch.rand(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 99), st.floats(0, 0.1))
def test_scales_beyond_the_prefix_get_no_gradient_and_those_within_do(prefix: int, seed: int, beta: float) -> None:
    log_p = drawn(seed).requires_grad_()
    rewards = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    prefix_grpo(
        log_p, drawn(seed), rewards, WEIGHTS, prefix=prefix, beta=beta, reference_log_p_GS=drawn(seed + 1)
    ).backward()
    assert (log_p.grad[:, prefix:] == 0).all() and (log_p.grad[:, :prefix] != 0).any(0).all()


def test_on_the_first_step_the_gradient_is_that_of_the_policy() -> None:
    """Ratio 1: -k_s A_i / G for each log-likelihood."""
    log_p, rewards = drawn(0).requires_grad_(), torch.arange(16, dtype=torch.float64)
    prefix_grpo(log_p, drawn(0), rewards, WEIGHTS, prefix=8).backward()
    expected = -WEIGHTS[:8] * advantages(rewards)[:, None] / 16
    torch.testing.assert_close(log_p.grad[:, :8], expected)


@pytest.mark.parametrize("reward", [0.0, 0.7])
def test_a_group_of_equal_rewards_has_no_advantage_and_no_nan(reward: float) -> None:
    log_p = drawn(1).requires_grad_()
    loss = prefix_grpo(log_p, drawn(2), torch.full((16,), reward, dtype=torch.float64), WEIGHTS, prefix=8)
    loss.backward()
    assert loss == 0 and (log_p.grad == 0).all()


def test_advantages_have_mean_0_and_deviation_1() -> None:
    found = advantages(torch.tensor([1.0, 2.0, 4.0, 9.0]))
    assert found.mean().abs() < 1e-6 and found.std(correction=0) == pytest.approx(1.0)


def test_a_ratio_beyond_the_clip_is_worth_no_more() -> None:
    rewards = torch.tensor([1.0, -1.0], dtype=torch.float64)
    start, weights = torch.zeros(2, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for moved, still in (((5.0, -5.0), (0.0, 0.0)), ((0.1, -0.1), (1.0, 1.0))):
        log_p = torch.tensor(moved, dtype=torch.float64)[:, None].requires_grad_()
        prefix_grpo(log_p, start, rewards, weights, prefix=1).backward()
        assert torch.equal(log_p.grad.flatten() != 0, torch.tensor(still, dtype=torch.float64) != 0)
