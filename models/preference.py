"""Objectives over sampled pictures and their rewards. Legend: G pictures of one prompt, S scales.

Prefix-tuning GRPO (NextFlow, arXiv 2601.02204, section on reinforcement learning): the state is the scales so far, an
action the whole grid of the next one. Only the first `prefix` scales are learnt; finer ones are drawn, and judged with
the picture, but get no gradient:

    A_i  = (R_i - mean R) / std R
    loss = -mean_i sum_{s < prefix} k_s min(r_is A_i, clip(r_is, 1 - eps, 1 + eps) A_i)  +  beta * KL to the reference

with r_is = exp(log p - log p at drawing) of scale s, which factorises over its places, and k_s the weight of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards_G: Tensor) -> Tensor:
    """(G) rewards less their mean over their deviation; 0 of a group whose rewards are all alike."""
    spread = rewards_G.std(correction=0)
    centred_G = rewards_G - rewards_G.mean()
    return torch.where(spread > 0, centred_G / spread.clamp(min=torch.finfo(rewards_G.dtype).tiny), 0 * centred_G)


def prefix_grpo(
    log_p_GS: Tensor,
    drawn_log_p_GS: Tensor,
    rewards_G: Tensor,
    weights_S: Tensor,
    *,
    prefix: int,
    clip: float = 0.2,
    beta: float = 0.0,
    reference_log_p_GS: Tensor | None = None,
) -> Tensor:
    """The loss of one group (scalar). No trainer calls it yet.

    Log-likelihoods are sums over the places of each scale; those at drawing and of the reference have no gradient. KL
    is the estimator exp(d) - d - 1 with d = log reference - log p (arXiv 2402.03300).
    """
    kept = slice(0, prefix)
    ratio_GS = (log_p_GS[:, kept] - drawn_log_p_GS[:, kept].detach()).exp()
    gain_G1 = advantages(rewards_G)[:, None]
    taken_GS = torch.minimum(ratio_GS * gain_G1, ratio_GS.clamp(1 - clip, 1 + clip) * gain_G1)
    loss = -(weights_S[kept] * taken_GS).sum(1).mean()
    if beta and reference_log_p_GS is not None:
        away_GS = reference_log_p_GS[:, kept].detach() - log_p_GS[:, kept]
        loss = loss + beta * (weights_S[kept] * (away_GS.exp() - away_GS - 1)).sum(1).mean()
    return loss
