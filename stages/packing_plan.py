"""Which samples share a pack: longest-processing-time-first inside a group, over costs and lengths alone.

First-fit fills packs one by one and leaves badly filled remainders; longest-first spreads a group over as few packs
as both caps allow, so that all of them cost nearly the same. Between groups, and where the cap on tokens binds, costs
still differ: the order of training sees to that. Nothing is cut, padded or dropped.

Holds no Python object for a sample beyond one group: ten million samples are a few arrays.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from infra.types import UserError

_FINE_ONE_IN = 128
"""How nearly the number of packs of a group is the smallest: to this share of it, or to one pack."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a pack may cost and hold."""

    flops: float
    """Training FLOPs (3x forward) of a pack."""
    max_tokens: int
    """Cap on the tokens of a pack: memory."""
    group_one_in: int
    """Mean number of samples in a group. Groups are of random size: make it hundreds of packs' worth."""

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.max_tokens > 0 and self.group_one_in > 0):
            raise UserError(f"packing has {self}; flops, max_tokens and group_one_in must each be above 0")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every sample in exactly one pack."""

    packs: list[NDArray[np.int64]]
    """Samples (row numbers of the input) of each pack, in order of place."""
    groups: NDArray[np.int64]
    """(P) group of each pack, ascending: whoever materialises packs needs the samples of one group at a time."""
    lone: NDArray[np.bool_]
    """(P) packs of one sample that by itself is costlier or longer than the budget. The caller decides if that is an
    error."""

    def sums(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """(P) sums over the samples of each pack, of (N) values such as costs or tokens."""
        sizes = np.fromiter(map(len, self.packs), np.int64, len(self.packs))
        if not len(sizes):
            return values[:0]
        return np.add.reduceat(values[np.concatenate(self.packs)], np.cumsum(sizes) - sizes)


def plan(places: NDArray[np.uint8], costs: NDArray[np.float64], tokens: NDArray[np.int64], budget: Budget) -> Plan:
    """Pack samples with these places ((N, 16), H(member key)), costs (training FLOPs) and lengths.

    The same whatever the order of the input; samples of the same place (pieces of one text) are told apart by cost
    and length, and where those are the same too, by the order they come in.
    """
    if not len(places) == len(costs) == len(tokens):
        raise ValueError(f"{len(places)} places, {len(costs)} costs, {len(tokens)} lengths; one of each a sample")
    order, edges = _grouped(places, costs, tokens, budget.group_one_in)
    packs: list[NDArray[np.int64]] = []
    groups: list[int] = []
    lone: list[NDArray[np.bool_]] = []
    for group, (start, end) in enumerate(pairwise(edges)):
        rows = order[start:end]
        found, alone = _packs_of(rows, costs[rows], tokens[rows], budget)
        packs += found
        groups += [group] * len(found)
        lone.append(alone)
    return Plan(
        packs=packs,
        groups=np.array(groups, np.int64),
        lone=np.concatenate(lone) if lone else np.zeros(0, np.bool_),
    )


def _grouped(
    places: NDArray[np.uint8], costs: NDArray[np.float64], tokens: NDArray[np.int64], one_in: int
) -> tuple[NDArray[np.int64], list[int]]:
    """Rows sorted by place, and the edges of groups among them.

    A place decides by itself whether a group begins with it, so a new sample changes (or splits) one group only.
    """
    if not len(places):
        return np.zeros(0, np.int64), [0]
    halves = np.ascontiguousarray(places).view(">u8").astype(np.uint64)
    high, low = halves[:, 0], halves[:, 1]
    order = np.argsort(high, kind="stable")
    if (high[order[1:]] == high[order[:-1]]).any():
        order = np.lexsort((tokens, costs, low, high))
    begins = low[order] % np.uint64(one_in) == 0
    # Pieces of one text share their place: only the first of them may begin a group.
    again = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    begins[1:] &= ~again
    begins[0] = True
    return order, [*np.flatnonzero(begins).tolist(), len(order)]


def _packs_of(
    rows: NDArray[np.int64], costs: NDArray[np.float64], tokens: NDArray[np.int64], budget: Budget
) -> tuple[list[NDArray[np.int64]], NDArray[np.bool_]]:
    """Packs of one group, in order of their first sample, and which of them are lone; rows are sorted by place."""
    over = (costs > budget.flops) | (tokens > budget.max_tokens)
    homes = np.empty(len(rows), np.int64)
    fit = np.flatnonzero(~over)
    homes[fit], num = _spread(costs[fit], tokens[fit], budget)
    homes[over] = num + np.arange(int(over.sum()))
    by_home = np.argsort(homes, kind="stable")
    starts = np.flatnonzero(np.diff(homes[by_home], prepend=-1))
    in_order = np.argsort(by_home[starts], kind="stable")
    ends = np.append(starts[1:], len(rows))
    members = rows[by_home]
    packs = [members[a:b] for a, b in zip(starts[in_order].tolist(), ends[in_order].tolist(), strict=True)]
    return packs, over[by_home[starts[in_order]]]


def _spread(costs: NDArray[np.float64], tokens: NDArray[np.int64], budget: Budget) -> tuple[NDArray[np.int64], int]:
    """Pack of each sample and the number of packs: as few as both caps allow (nearly), all of about equal cost."""
    homes = np.empty(len(costs), np.int64)
    if not len(costs):
        return homes, 0
    falling = np.lexsort((-tokens, -costs))
    sorted_costs, sorted_tokens = costs[falling].tolist(), tokens[falling].tolist()
    num = max(1, int(np.ceil(costs.sum() / budget.flops)), -(-int(tokens.sum()) // budget.max_tokens))
    low, step = num - 1, max(1, num // _FINE_ONE_IN)
    while (found := _longest_first(sorted_costs, sorted_tokens, num, budget)) is None:
        low, num, step = num, num + step, 2 * step
    while num - low > max(1, num // _FINE_ONE_IN):
        middle = (low + num) // 2
        tried = _longest_first(sorted_costs, sorted_tokens, middle, budget)
        low, num, found = (middle, num, found) if tried is None else (low, middle, tried)
    homes[falling] = found
    return homes, num


def _longest_first(costs: list[float], tokens: list[int], num: int, budget: Budget) -> list[int] | None:
    """Pack of each sample, costliest first into the least loaded of `num` packs with room; None where one has none.

    Packs without room for the sample at hand wait aside until a sample comes that is short enough for them: samples
    come about longest first, so a pack goes aside and comes back a few times in all, not once a sample.
    """
    limit, room = budget.flops, [budget.max_tokens] * num
    loads = [(0.0, pack) for pack in range(num)]
    aside: list[tuple[int, float, int]] = []
    homes: list[int] = []
    for cost, size in zip(costs, tokens, strict=True):
        while aside and -aside[0][0] >= size:
            _, load, pack = heapq.heappop(aside)
            heapq.heappush(loads, (load, pack))
        while loads and room[loads[0][1]] < size:
            load, pack = heapq.heappop(loads)
            heapq.heappush(aside, (-room[pack], load, pack))
        if not loads or loads[0][0] + cost > limit:
            return None
        load, pack = loads[0]
        heapq.heapreplace(loads, (load + cost, pack))
        room[pack] -= size
        homes.append(pack)
    return homes
