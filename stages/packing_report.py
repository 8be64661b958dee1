"""How even a plan is, in numbers, beside the two usual ways: padding, and packing to a fixed length.

A step lasts as long as its costliest rank, one pack a rank: throughput is predicted as tokens over the sum of those
costs. A last step of fewer packs counts as one of fewer ranks. Costs are FLOPs by formula, never measured time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models import flops
from models.flops import TrunkShape
from stages.packing_plan import Budget, Plan

PADDING_BATCH = 8
"""Samples of a padded batch (model-recipes 2.6)."""
_OPEN_BINS = 8
"""Packs that are open at once when packs are filled to a fixed length (torchtitan)."""


def measures(
    plan: Plan,
    costs: NDArray[np.float64],
    tokens: NDArray[np.int64],
    budget: Budget,
    *,
    places: NDArray[np.uint8],
    orders: NDArray[np.int64],
    global_batch: int,
    trunk: TrunkShape,
    padding_batch: int = PADDING_BATCH,
    fixed_tokens: int | None = None,
) -> dict[str, float]:
    """What model-recipes 2.5 asks for, with the names of both baselines before a slash.

    Baselines take samples in order of place, which is random. The padded one attends causally within the padded
    length and its head skips padding: it is not made worse than it is. The fixed length is `fixed_tokens`, or
    `max_tokens` of the budget: the same memory.
    """
    if not plan.packs:
        return {"num_packs": 0.0, "num_samples": 0.0, "num_tokens": 0.0, "dropped": 0.0, "padding_fraction": 0.0}
    pack_costs = np.empty(len(plan.packs))
    pack_costs[orders] = plan.sums(costs)
    ours = steps(pack_costs, global_batch)
    rows = np.concatenate(plan.packs)
    arrivals = by_place(places)
    padded_costs, padding = padded(costs[arrivals], tokens[arrivals], trunk, padding_batch)
    pad = steps(padded_costs, global_batch)
    room = max(int(tokens.max()), fixed_tokens or budget.max_tokens)
    fixed = steps(fixed_length(costs[arrivals], tokens[arrivals], room), global_batch)
    pack_tokens = plan.sums(tokens)
    return {
        "num_packs": len(plan.packs),
        "num_lone": int(plan.lone.sum()),
        "num_samples": len(rows),
        "num_tokens": int(tokens.sum()),
        "dropped": len(tokens) - len(np.unique(rows)),
        "padding_fraction": 0.0,
        "fill": float((plan.sums(costs)[~plan.lone].mean() if not plan.lone.all() else 0.0) / budget.flops),
        "tokens_fill": float(pack_tokens.mean() / budget.max_tokens),
        "most_tokens": int(pack_tokens.max()),
        **_carried(plan, arrivals),
        **_named("", ours),
        "pad_to_longest/padding_fraction": padding,
        **_named("pad_to_longest/", pad),
        **_named("fixed_length/", fixed),
        "throughput_over_pad_to_longest": pad["time"] / ours["time"],
        "throughput_over_fixed_length": fixed["time"] / ours["time"],
        "throughput_bound_over_fixed_length": fixed["time"] / float(costs.sum()),
    }


def by_place(places: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows sorted by place: the order of arrival."""
    halves = np.ascontiguousarray(places).view(">u8").astype(np.uint64)
    return np.lexsort((halves[:, 1], halves[:, 0]))


def padded(
    costs: NDArray[np.float64], tokens: NDArray[np.int64], trunk: TrunkShape, batch: int
) -> tuple[NDArray[np.float64], float]:
    """Cost of each batch of neighbours padded to its longest sample, and the share of padding in its tokens.

    A sample pays for the positions and causal pairs it is padded by, on top of what it costs by itself.
    """
    a_token = flops.cost(trunk, 0, 1, 0, 0).train
    a_pair = flops.cost(trunk, 0, 0, 1, 0).train
    starts = np.arange(0, len(tokens), batch)
    sizes = np.diff(starts, append=len(tokens))
    longest = np.repeat(np.maximum.reduceat(tokens, starts), sizes)
    pairs = longest * (longest + 1) // 2 - tokens * (tokens + 1) // 2
    extra = a_token * (longest - tokens) + a_pair * pairs
    return np.add.reduceat(costs + extra, starts), 1 - float(tokens.sum() / longest.sum())


def fixed_length(costs: NDArray[np.float64], tokens: NDArray[np.int64], room: int) -> NDArray[np.float64]:
    """Cost of packs filled to `room` tokens, whatever they cost: first fit, the fullest is closed when none fits."""
    opened: list[list[float]] = []
    closed: list[float] = []
    for cost, size in zip(costs.tolist(), tokens.tolist(), strict=True):
        for pack in opened:
            if pack[0] >= size:
                pack[0] -= size
                pack[1] += cost
                break
        else:
            if len(opened) == _OPEN_BINS:
                fullest = min(range(_OPEN_BINS), key=lambda i: opened[i][0])
                closed.append(opened.pop(fullest)[1])
            opened.append([room - size, cost])
    return np.array(closed + [pack[1] for pack in opened])


def steps(costs: NDArray[np.float64], global_batch: int) -> dict[str, float]:
    """Evenness of packs in order of training: `time` is what their ranks spend, idle time included, in FLOPs."""
    starts = np.arange(0, len(costs), global_batch)
    sizes = np.diff(starts, append=len(costs))
    worst = np.maximum.reduceat(costs, starts)
    uneven = worst / (np.add.reduceat(costs, starts) / sizes)
    time = float((worst * sizes).sum())
    return {
        "imbalance": float(uneven.mean()),
        "worst_imbalance": float(uneven.max()),
        "idle": 1 - float(costs.sum()) / time,
        "time": time,
    }


def _named(prefix: str, found: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in found.items() if name != "time"}


def _carried(plan: Plan, arrivals: NDArray[np.int64]) -> dict[str, float]:
    """By how many places samples are moved inside their group, when packs are read one after another."""
    rank = np.empty(len(arrivals), np.int64)
    rank[arrivals] = np.arange(len(arrivals))
    moved = np.abs(rank[np.concatenate(plan.packs)] - np.arange(len(arrivals)))
    return {"carried_places_mean": float(moved.mean()), "carried_places_max": int(moved.max())}
