"""Objectives. Legend: N rows (tokens), D width, V vocabulary, C rows of a chunk.

Next-token cross-entropy without ever holding (N, V) logits:

    lse_n = logsumexp(h_n W^T)
    loss  = sum_n weight_n * (lse_n - h_n . W_target_n + z_loss * lse_n^2) / divisor

with a weight for every row and one divisor given by the caller: the sum of weights over the *global* batch, so that
neither ranks nor packs of unequal length bend the gradient (pytorch/torchtitan#1842). Gradients are computed in the
forward pass, chunk by chunk, and only scaled in the backward pass (3x the head's FLOPs in all, as Liger does).
Other losses (next-scale weights, diffusion) will stand here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20
"""Of the logits of one chunk, their copy in bf16 included: `python -m benchmarks.fused_loss` measures it."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        hidden_ND, head_VD, target_N, share_N, z_loss, wants_grad = given
        chunks = _Chunks(hidden_ND, head_VD, wants_grad)
        nll_N, lse_N = (torch.empty(len(hidden_ND), dtype=chunks.exact, device=hidden_ND.device) for _ in range(2))
        for start in range(0, len(hidden_ND), chunks.rows):
            rows = slice(start, start + chunks.rows)
            nll_N[rows], lse_N[rows] = chunks.add(rows, target_N[rows, None], share_N[rows], z_loss)
        ctx.grads = chunks.grads()
        ctx.mark_non_differentiable(nll_N)
        return ((nll_N + z_loss * lse_N.square()) * share_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("linear_cross_entropy gives its gradients away: it can be differentiated only once")
        # Scaled in place and given away: a copy would be as large as the head.
        grad_hidden, grad_head = (grad.mul_(grad_outputs[0]) for grad in ctx.grads)
        ctx.grads = None
        return grad_hidden, grad_head, None, None, None, None


class _Chunks:
    """Buffers of one call, made once and used by every chunk: fresh ones would cost page faults, or fragments."""

    def __init__(self, hidden_ND: Tensor, head_VD: Tensor, wants_grad: bool) -> None:
        self.hidden_ND, self.head_VD = hidden_ND, head_VD
        self.exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        """Of logits, losses and the sum of the head's gradient."""
        self._narrow = hidden_ND.dtype != self.exact
        each = self.exact.itemsize + (hidden_ND.dtype.itemsize if self._narrow else 0)
        self.rows = max(1, min(len(hidden_ND), CHUNK_BYTES // (each * len(head_VD))))
        self._logits_CV = head_VD.new_empty(self.rows, len(head_VD), dtype=self.exact)
        self._low_CV = torch.empty_like(self._logits_CV, dtype=hidden_ND.dtype) if self._narrow else self._logits_CV
        self._grad_hidden = torch.zeros_like(hidden_ND) if wants_grad else None
        self._grad_head = torch.zeros_like(head_VD, dtype=self.exact) if wants_grad else None

    def add(self, rows: slice, target_C1: Tensor, share_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        """Likelihood and log-sum-exp (C) of these rows, whose gradients join the sums."""
        hidden_CD = self.hidden_ND[rows]
        low_CV, logits_CV = self._low_CV[: len(hidden_CD)], self._logits_CV[: len(hidden_CD)]
        torch.mm(hidden_CD, self.head_VD.T, out=low_CV)
        if self._narrow:
            logits_CV.copy_(low_CV)
        logit_C1 = logits_CV.gather(1, target_C1)
        # Not torch.logsumexp: it holds a second (C, V), and the exponentials are wanted below.
        top_C1 = logits_CV.amax(1, keepdim=True)
        exp_CV = logits_CV.sub_(top_C1).exp_()
        sum_C1 = exp_CV.sum(1, keepdim=True)
        lse_C1 = sum_C1.log().add_(top_C1)
        if self._grad_hidden is not None and self._grad_head is not None:
            # d loss / d logits = share * ((1 + 2 z lse) * softmax - onehot)
            share_C1 = share_C[:, None]
            torch.mul(exp_CV, share_C1 * (1 + 2 * z_loss * lse_C1) / sum_C1, out=exp_CV)
            exp_CV.scatter_add_(1, target_C1, -share_C1)
            slope_CV = low_CV.copy_(exp_CV) if self._narrow else exp_CV
            torch.mm(slope_CV, self.head_VD, out=self._grad_hidden[rows])
            _add_product(self._grad_head, slope_CV, hidden_CD)
        return (lse_C1 - logit_C1)[:, 0], lse_C1[:, 0]

    def grads(self) -> tuple[Tensor, Tensor] | None:
        """Of the hidden states and of the head, each in the precision of what it belongs to."""
        if self._grad_hidden is None or self._grad_head is None:
            return None
        return self._grad_hidden, self._grad_head.to(self.head_VD.dtype)


def _add_product(sum_VD: Tensor, slope_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add slope^T @ hidden to the sum, which may be more precise than both."""
    if sum_VD.dtype == hidden_CD.dtype:
        sum_VD.addmm_(slope_CV.T, hidden_CD)
        return
    block = max(1, len(sum_VD) // 8)  # a product of the head's whole size would be the largest thing here
    for start in range(0, len(sum_VD), block):
        part = slice(start, start + block)
        sum_VD[part] += slope_CV[:, part].T @ hidden_CD


def linear_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    divisor: Tensor | float,
    *,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weighted loss (scalar, nats) and the plain negative log-likelihood (N) of each row, without gradient.

    `z_loss` times the squared log-sum-exp is part of the loss, under the same weights and divisor, and not of the
    likelihood (PaLM, arXiv 2204.02311; Chameleon, arXiv 2405.09818: 1e-5).

    Rows of weight 0 never reach the matmul: their likelihood reads 0 and their gradient is exactly zero. With no row
    left the loss is a zero with a live graph, so that every rank still takes part in the backward pass. The head's
    gradient is summed over chunks in fp32. Only one backward pass: the gradients are made ahead and given away in it.
    """
    kept = weight_N.nonzero()[:, 0]
    nll_N = torch.zeros(len(hidden_ND), dtype=weight_N.dtype, device=hidden_ND.device)
    if not len(kept):
        return (hidden_ND.sum() + head_VD.sum()) * 0.0, nll_N
    exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    share_N = weight_N[kept].to(exact) / divisor
    wants_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad)
    chosen = hidden_ND if len(kept) == len(hidden_ND) else hidden_ND[kept]  # a full pack is not copied
    out: Any = _ChunkedCrossEntropy.apply(chosen, head_VD, target_N[kept], share_N, z_loss, wants_grad)
    loss, nll_kept = out
    nll_N[kept] = nll_kept.to(nll_N.dtype)
    return loss, nll_N


@dataclass(frozen=True)
class Wanted:
    """What a head is held to: see `linear_cross_entropy`."""

    target_N: Tensor  # noqa: N815
    weight_N: Tensor  # noqa: N815
    divisor: Tensor | float
    z_loss: float = 0.0


class Head(nn.Linear):
    """A matrix (V, D) to logits (..., V), or, where targets are given, to the loss and likelihoods (N) without them.

    The loss is made inside the module's call, because ZeRO-3 has the matrix whole only there.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size, bias=False)

    def forward(self, input: Tensor, wanted: Wanted | None = None) -> Any:
        """(..., D) to (..., V); or (N, D) to a scalar and (N)."""
        if wanted is None:
            return super().forward(input)
        given = wanted.target_N, wanted.weight_N, wanted.divisor
        return linear_cross_entropy(input, self.weight, *given, z_loss=wanted.z_loss)
