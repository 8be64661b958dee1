"""Ulysses sequence parallelism (arXiv 2309.14509): S ranks share the places of one batch.

Legend: T places of the batch, t of them this rank's, S ranks, H query heads, h = H/S of them a rank's in attention,
G KV heads, g of them a rank's, E head size, D width, P latents of the batch, R of them in this rank's places, O of them
in pictures that begin there.

Every rank holds the whole batch, and its own t = T/S places (uneven by one where S does not divide T; no padding).
All of the trunk but attention works on a place by itself; attention sees all T places with H/S of the heads:

    (t, H, E) -- all-to-all --> (T, H/S, E) -- any `Attend`, unchanged --> (T, H/S, E) -- all-to-all --> (t, H, E)

so that a pack's documents, groups and kernels stay as they are, and a rank's memory, logits included, is that of t
places. A layer sends about (2h + 2g) * T/S * E numbers a rank, whatever S.

deepspeed.sequence.layer does the same exchange, but refuses G < S, and takes only a sequence that S divides.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from models.attention import Attend
from models.batch import Batch


def heads_of_rank(heads: int, kv_heads: int, size: int) -> tuple[int, int, int]:
    """Query heads h and KV heads g of each of `size` ranks, and how many times every KV head is given away, in turn.

    A KV head goes to every rank with a query head of its group. Where a rank's heads and a group do not begin and end
    together (12 heads, 4 KV heads, 3 ranks), a rank has a KV head several times, so that all have equally many.
    """
    if heads % size:
        raise ValueError(f"{size} ranks cannot share {heads} query heads: give a sequence size that divides the heads")
    own, group = heads // size, heads // kv_heads
    together = math.gcd(own, group)
    return own, own // together, group // together


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank computes of a batch. Of a rank by itself: all of it."""

    ranks: SequenceRanks
    batch: Batch
    """Tokens, targets, weights, positions, scales and features of its t places; pictures of latents, whole, that have
    places among them. Not cut: lengths and groups, which are attention's; `latent_at_P`, see `latent_at_R`."""
    places: slice
    """Which of the T places."""
    latent_at_R: Tensor | None  # noqa: N815
    """(R) latents in the t places: where they stand there,"""
    inside: slice
    """and which rows they are of the latents in `batch`."""
    begun: slice
    """Pictures in `batch` that begin in the t places (all but perhaps the first): it is this rank that leaves the trunk
    with them, and holds them to their noise."""
    begun_rows: slice
    """(O) rows of these in `batch`,"""
    begun_of_all: slice
    """and among the P latents of all."""
    sent: list[int]
    """(S) how many of the R latents begin on each rank,"""
    received: list[int]
    """(S) and how many of the O latents each rank has."""

    def whole_pictures(self, latents_RD: Tensor) -> Tensor:
        """(R, D) of each rank's places to (O, D) of the pictures that begin there, in order. Every rank must call it,
        and keep what it gives in its graph, even if it is empty."""
        return self.ranks.exchange(latents_RD, self.sent, self.received)


class SequenceRanks:
    """The ranks of a process group, all of which are given the very same batches. They take part in every call below
    together, in one order, in the backward pass too."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """None: this process by itself (not the world, as elsewhere in torch); nothing is sent."""
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def edges(self, total: int) -> list[int]:
        """(S + 1) where each rank's places begin, and T."""
        return [total * rank // self.size for rank in range(self.size + 1)]

    def share(self, batch: Batch) -> Share:
        """This rank's places and pictures."""
        if len(batch.tokens_T) < self.size:
            raise ValueError(f"{self.size} ranks cannot share {len(batch.tokens_T)} places: each needs one or more")
        edges = self.edges(len(batch.tokens_T))
        first, last = edges[self.rank], edges[self.rank + 1]
        places = slice(first, last)
        own = replace(
            batch,
            tokens_T=batch.tokens_T[places],
            targets_T=batch.targets_T[places],
            weights_T=batch.weights_T[places],
            positions_TA=batch.positions_TA[places],
        )
        if batch.scale_at_S is not None:
            assert batch.codes_SN is not None and batch.roles_SN is not None and batch.scales_S2 is not None
            rows = slice(*_cuts(batch.scale_at_S, edges)[self.rank :][:2])
            own.scale_at_S = batch.scale_at_S[rows] - first
            own.codes_SN, own.roles_SN = batch.codes_SN[rows], batch.roles_SN[rows]
            own.scales_S2 = batch.scales_S2[rows]
        if batch.feature_at_Q is not None:
            assert batch.features_QF is not None
            rows = slice(*_cuts(batch.feature_at_Q, edges)[self.rank :][:2])
            own.feature_at_Q, own.features_QF = batch.feature_at_Q[rows] - first, batch.features_QF[rows]
        return self._share_of_pictures(batch, own, places, edges)

    def _share_of_pictures(self, batch: Batch, own: Batch, places: slice, edges: list[int]) -> Share:
        if batch.latent_at_P is None:
            none = slice(0, 0)
            kinds = {"inside": none, "begun": none, "begun_rows": none, "begun_of_all": none}
            return Share(ranks=self, batch=own, places=places, latent_at_R=None, sent=[], received=[], **kinds)
        assert batch.latent_grids is not None
        # Of the P latents: which each rank has in its places, where pictures begin, and which begin on each rank.
        starts = [0, *accumulate(math.prod(grid) for grid in batch.latent_grids)]
        cuts = _cuts(batch.latent_at_P, edges)
        first_of = [bisect_left(starts, cut) for cut in cuts]
        low, high = cuts[self.rank], cuts[self.rank + 1]
        begun, after = first_of[self.rank], first_of[self.rank + 1]
        touched = min(begun, bisect_right(starts, low) - 1) if low < high else begun
        rows = slice(starts[touched], starts[after])
        for name in ("latent_at_P", "clean_PC", "noise_PC", "step_P", "pictures_P"):
            setattr(own, name, getattr(batch, name)[rows])
        own.latent_grids = batch.latent_grids[touched:after]
        of_owner = [starts[n] for n in first_of]
        return Share(
            ranks=self,
            batch=own,
            places=places,
            latent_at_R=batch.latent_at_P[low:high] - places.start,
            inside=slice(low - rows.start, high - rows.start),
            begun=slice(begun - touched, after - touched),
            begun_rows=slice(starts[begun] - rows.start, starts[after] - rows.start),
            begun_of_all=slice(starts[begun], starts[after]),
            sent=[_common((low, high), owned) for owned in pairwise(of_owner)],
            received=[_common(held, (starts[begun], starts[after])) for held in pairwise(cuts)],
        )

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """All-to-all, differentiable: the first `sent[0]` rows go to rank 0, and so on; what comes stands in the order
        of ranks. Numbers are those of rows, as every rank knows them already."""
        if self.group is None or self.size == 1:
            return rows
        # Of the functional collectives, as torch.distributed.nn.functional is deprecated for them; they are operators,
        # which recomputation of blocks and torch.compile see through.
        from torch.distributed._functional_collectives import all_to_all_single, wait_tensor

        return wait_tensor(all_to_all_single(rows.contiguous(), list(received), list(sent), self.group))

    def attend(self, inner: Attend, total: int) -> Attend:
        """Attention over all T places for ranks that hold t of them; `inner` is that of the whole batch."""
        return inner if self.size == 1 else _HeadsForPlaces(inner, self, total)


ALONE = SequenceRanks(None)


class _HeadsForPlaces:
    """`Attend` of t places: queries (1, H, t, E), keys and values (1, G, t, E), to (1, H, t, E)."""

    def __init__(self, inner: Attend, ranks: SequenceRanks, total: int) -> None:
        self.inner, self.ranks = inner, ranks
        self.places = [after - before for before, after in pairwise(ranks.edges(total))]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Heads for places, attention, places for heads. Queries, keys and values travel in one message."""
        size, places = self.ranks.size, self.places
        (B, H, t, _), G = q.shape, k.shape[1]
        if B != 1:
            raise ValueError(f"ranks share the places of one packed batch, these are {B}")
        h, g, times = heads_of_rank(H, G, size)
        given = ((q[0], h), *((x[0].repeat_interleave(times, 0), g) for x in (k, v)))
        parts = [x.unflatten(0, (size, of_rank)).transpose(1, 2) for x, of_rank in given]  # (S, t, of a rank, E)
        sent = torch.cat(parts, dim=2).flatten(0, 1)
        whole_THE = self.ranks.exchange(sent, [t] * size, places)
        whole_q, whole_k, whole_v = whole_THE.transpose(0, 1)[None].split((h, g, g), dim=1)
        seen_ThE = self.inner(layer, whole_q, whole_k, whole_v, dropout)[0].transpose(0, 1)
        own_StE = self.ranks.exchange(seen_ThE, places, [t] * size).unflatten(0, (size, t))  # (S, t, h, E)
        return own_StE.transpose(1, 2).flatten(0, 1)[None]


def _cuts(at_N: Tensor, edges: Sequence[int]) -> list[int]:
    """(S + 1) how many of the ascending places stand before each edge."""
    inner = torch.tensor(edges[1:-1], device=at_N.device, dtype=at_N.dtype)
    return [0, *(torch.searchsorted(at_N, inner).tolist() if len(inner) else ()), len(at_N)]


def _common(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))
