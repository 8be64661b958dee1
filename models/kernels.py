"""Kernels for the one rule of `models/attention.py` where a dense mask would not fit. B batch, H heads, G KV heads,
T tokens, E head size.

`FlexAttention` takes any documents, orders and groups and skips blocks that nobody may see; `VarlenAttention` takes
plain causal documents. Both equal `DenseAttention(may_see(...))`. FlexAttention is compiled on CUDA only; elsewhere
PyTorch runs it uncompiled over the dense matrix, forward only: good for tests, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from models.attention import NO_GROUP


class FlexAttention:
    """The rule of `may_see`, as a block mask made once for a pack and shared by every layer."""

    def __init__(self, document_T: Tensor, order_T: Tensor | None = None, group_T: Tensor | None = None) -> None:
        tokens, device = len(document_T), document_T.device
        order_T = torch.arange(tokens, device=device) if order_T is None else order_T
        rule = _rule(document_T, order_T, group_T)
        # Uncompiled it would make the dense (T, T) on the way.
        create: Any = _compiled(create_block_mask) if document_T.is_cuda else create_block_mask
        self.mask: BlockMask = create(rule, None, None, tokens, tokens, device=device)
        """Blocks of 128 x 128 tokens: unseen, seen in part, seen whole."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention over the blocks that somebody in them may see."""
        _refuse_dropout(dropout)
        attend: Any = _compiled(flex_attention) if q.is_cuda else flex_attention
        return attend(q, k, v, block_mask=self.mask, enable_gqa=True)


class VarlenAttention:
    """Causal attention inside each packed document in one call of the varlen kernel: CUDA, bf16 or fp16.

    Equal to `DocumentAttention(lengths)`.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = [int(length) for length in lengths]
        self._ends: Tensor | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention of every document by itself."""
        from torch.nn.attention.varlen import varlen_attn

        _refuse_dropout(dropout)
        if not q.is_cuda:
            raise ValueError("VarlenAttention needs CUDA: take DocumentAttention elsewhere")
        batch, longest = len(q), max(self.lengths)
        if self._ends is None:
            lengths = torch.tensor([0, *self.lengths * batch], dtype=torch.int32)
            self._ends = lengths.cumsum(0, dtype=torch.int32).to(q.device)
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        ends, causal = self._ends, (-1, 0)
        seen: Any = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=causal, enable_gqa=True)
        return seen.unflatten(0, (batch, -1)).transpose(1, 2)


@cache
def _compiled(function: Callable[..., Any]) -> Any:
    # Dynamic as PyTorch sees fit: packs differ in length, and after a few static compilations it would fall back to
    # the uncompiled, quadratic path.
    return torch.compile(function)


def _rule(document_T: Tensor, order_T: Tensor, group_T: Tensor | None) -> Callable[..., Tensor]:
    """`may_see` for one pair of places, as create_block_mask asks for it."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = order_T[key] <= order_T[query]
        if group_T is not None:
            allowed = allowed | ((group_T[key] == group_T[query]) & (group_T[query] != NO_GROUP))
        return allowed & (document_T[key] == document_T[query])

    return seen


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError("this attention kernel has no dropout: set it to 0, or take DenseAttention")
