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

    The first pass brings the prompts, later ones, each announced by `admit`, what follows: a token, or a block whose
    places see each other. Keys and values lie in memory that doubles when it is full.
    """

    def __init__(self, real_BT: Tensor, sees_BTT: Tensor | None = None) -> None:
        """`real_BT`: False where padding stands, which is never seen. `sees_BTT`: who sees whom in the prompts, where
        that is not just what came before."""
        self._real_BT, self._padded = real_BT, not bool(real_BT.all())
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._start, self._length = 0, real_BT.shape[1]
        self._causal, self._mask = not self._padded and sees_BTT is None, None
        if not self._causal:
            T = self._length
            square = torch.ones(T, T, dtype=torch.bool, device=real_BT.device)
            sees = square.tril() if sees_BTT is None else sees_BTT
            # padding sees itself, so that no row is empty
            self._mask = ((sees & real_BT[:, None, :]) | square.diag().diag())[:, None]

    def admit(self, new: int, *, both_ways: bool = False, keeps: bool = True) -> None:
        """The next pass brings so many places; with `both_ways` they see each other, and without `keeps` the pass after
        it finds the cache as it was before."""
        assert both_ways or new == 1
        self._start = self._length
        self._length += new if keeps else 0
        self._causal, self._mask = False, None
        if self._padded:
            total = self._start + new
            self._mask = pad(self._real_BT, (0, total - self._real_BT.shape[1]), value=True)[:, None, None, :]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention over the cache and the new places, which join the cache."""
        start, end = self._start, self._start + k.shape[2]
        kept_k, kept_v = self._room(layer, k, end)
        kept_k[:, :, start:end], kept_v[:, :, start:end] = k, v
        if not start:
            return scaled_dot_product_attention(q, k, v, attn_mask=self._mask, is_causal=self._causal, enable_gqa=True)
        # nothing depends on which query it is: those of heads that share keys stand in one row, and no key is copied
        B, H, n, E = q.shape
        folded = q.reshape(B, k.shape[1], -1, E)
        y = scaled_dot_product_attention(folded, kept_k[:, :, :end], kept_v[:, :, :end], attn_mask=self._mask)
        return y.reshape(B, H, n, E)

    def _room(self, layer: int, like: Tensor, end: int) -> tuple[Tensor, Tensor]:
        kept = self._kept.get(layer)
        if kept is None or kept[0].shape[2] < end:
            B, G, _, E = like.shape
            larger = like.new_empty(2, B, G, max(2 * end, 256), E)
            if kept is not None:
                larger[:, :, :, : self._start] = torch.stack([one[:, :, : self._start] for one in kept])
            kept = self._kept[layer] = larger[0], larger[1]
        return kept


def _own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=True
    )
