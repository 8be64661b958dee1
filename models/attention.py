"""Who may see whom, and the kernels that compute it. Legend: B batch, H heads, G KV heads, T tokens, E head size.

One rule (ARCHITECTURE, "One trunk, many recipes"): query q may see key k when

    same document  AND  (order(k) <= order(q)  OR  group(k) = group(q))

Causal text, images attended both ways and next-scale blocks differ only in their group ids (-1: no group).
An `Attend` is what the trunk calls in every layer; `DenseAttention` is the oracle of all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

NO_GROUP = -1


class Attend(Protocol):
    """Attention of one layer: queries (B, H, T, E), keys and values (B, G, T, E), to (B, H, T, E)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Values each query attends to, weighted."""
        ...


def may_see(document_T: Tensor, order_T: Tensor | None = None, group_T: Tensor | None = None) -> Tensor:
    """(T, T) boolean: whether query (row) may see key (column). Order defaults to the place in the sequence."""
    order_T = torch.arange(len(document_T), device=document_T.device) if order_T is None else order_T
    seen = order_T[None, :] <= order_T[:, None]
    if group_T is not None:
        seen = seen | ((group_T[None, :] == group_T[:, None]) & (group_T[:, None] != NO_GROUP))
    return seen & (document_T[None, :] == document_T[:, None])


class DenseAttention:
    """Any mask, as a boolean matrix (T, T) or (B, 1, T, T): exact, and quadratic in the pack."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Masked attention over all keys."""
        return scaled_dot_product_attention(q, k, v, attn_mask=self.mask, dropout_p=dropout, enable_gqa=True)


class DocumentAttention:
    """Attention inside each packed document, one kernel call a document: cost is the sum over documents.

    Equal to `DenseAttention(may_see(document, group))`; causal where a document has no groups. The oracle, and the way
    on CPU, of the kernels in models/kernels.py.
    """

    def __init__(self, lengths: Sequence[int], group_T: Tensor | None = None) -> None:
        self.lengths = [int(length) for length in lengths]
        groups = [None] * len(self.lengths) if group_T is None else group_T.split(self.lengths)
        self.masks = [
            None if group is None or not (group != NO_GROUP).any() else may_see(torch.zeros_like(group), group_T=group)
            for group in groups
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention of every document by itself, joined along T."""
        parts = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)), self.masks, strict=True)
        return torch.cat([_own(*part, dropout=dropout) for part in parts], dim=2)


class CachedAttention:
    """Attention of new places over all places so far, for drawing batches whose prompts are padded on the left.

    The first call of a layer brings the prompts, later ones what follows: a token, or a block whose places see each
    other (`both_ways`), which joins the cache unless it will be drawn again (`keeps`).
    """

    both_ways = False
    keeps = True

    def __init__(self, real_BT: Tensor) -> None:
        self.real_BT = real_BT
        """(B, T of the prompts): False where padding stands; padding is never seen."""
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention over the cache and the new tokens, which join the cache."""
        if layer in self._cache:
            old_k, old_v = self._cache[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        if self.keeps:
            self._cache[layer] = (k, v)
        new, total = q.shape[2], k.shape[2]
        real = pad(self.real_BT, (0, total - self.real_BT.shape[1]), value=True)
        causal = torch.ones(new, total, dtype=torch.bool, device=q.device)
        causal = causal if self.both_ways else causal.tril(total - new)
        own = torch.eye(new, total, dtype=torch.bool, device=q.device).roll(total - new, 1)
        mask = (causal & real[:, None, None, :]) | own  # padding sees itself, so that no row is empty
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def _own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=True
    )
