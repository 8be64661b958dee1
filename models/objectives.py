"""Objectives. Legend: N rows (tokens), D width, V vocabulary, C rows of a chunk.

Next-token cross-entropy without ever holding (N, V) logits:

    loss = sum_n weight_n * (logsumexp(h_n W^T) - h_n . W_target_n) / divisor

with a weight for every row and one divisor given by the caller: the sum of weights over the *global* batch, so that
neither ranks nor packs of unequal length bend the gradient (pytorch/torchtitan#1842). Gradients are computed in the
forward pass, chunk by chunk, and only scaled in the backward pass (3x the head's FLOPs in all, as Liger does).
Other losses (next-scale weights, diffusion) will stand here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 1024


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        hidden_ND, head_VD, target_N, weight_N, divisor = given
        wants_grad = any(ctx.needs_input_grad[:2])
        nll_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        nll_N = nll_N.double() if hidden_ND.dtype == torch.float64 else nll_N
        grad_hidden = torch.zeros_like(hidden_ND)
        grad_head = torch.zeros_like(head_VD, dtype=nll_N.dtype)
        for start in range(0, len(hidden_ND), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits_CV = (hidden_ND[rows] @ head_VD.T).to(nll_N.dtype)
            lse_C = torch.logsumexp(logits_CV, dim=-1)
            target_C1 = target_N[rows, None]
            nll_N[rows] = lse_C - logits_CV.gather(1, target_C1)[:, 0]
            if not wants_grad:
                continue
            slope_CV = logits_CV.sub_(lse_C[:, None]).exp_()
            slope_CV.scatter_add_(1, target_C1, torch.full_like(target_C1, -1, dtype=slope_CV.dtype))
            slope_CV.mul_((weight_N[rows] / divisor)[:, None])
            slope_CV = slope_CV.to(hidden_ND.dtype)
            grad_hidden[rows] = slope_CV @ head_VD
            grad_head += slope_CV.T @ hidden_ND[rows]
        ctx.save_for_backward(grad_hidden, grad_head.to(head_VD.dtype))
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weight_N).sum() / divisor, nll_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_head * grad_outputs[0], None, None, None


def linear_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor, divisor: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Weighted loss (scalar, nats) and the plain negative log-likelihood (N) of each row, without gradient.

    Rows of weight 0 never reach the matmul: their likelihood reads 0 and their gradient is exactly zero. With no row
    left the loss is a zero with a live graph, so that every rank still takes part in the backward pass.
    """
    kept = weight_N.nonzero()[:, 0]
    nll_N = torch.zeros(len(hidden_ND), dtype=weight_N.dtype, device=hidden_ND.device)
    if not len(kept):
        return (hidden_ND.sum() + head_VD.sum()) * 0.0, nll_N
    out: Any = _ChunkedCrossEntropy.apply(hidden_ND[kept], head_VD, target_N[kept], weight_N[kept], divisor)
    loss, nll_kept = out
    nll_N[kept] = nll_kept.to(nll_N.dtype)
    return loss, nll_N
