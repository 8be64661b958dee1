"""Packing by a budget of FLOPs beside padding and a fixed length: predicted, on mixes of samples; and its speed.

    python -m benchmarks.packing [--samples 60000] [--large]

Costs are FLOPs by formula for the 7B trunk of model-recipes 2.2, one pack a rank, 64 ranks; throughput is tokens over
the time of the costliest rank of each step. Nothing here is measured on a GPU. The mixes:

- `mix`: model-recipes 2.6. The recipe does not give the log-normal; median 600 and sigma 1.5 come near its baselines:
  imbalance of the fixed length 1.30 (there 1.265), of padding 4.7 (4.31), padding 63 % of tokens (62 %).
- `stage 256`, `512`, `1024`: NextFlow's pretraining stages by their numbers of samples (model-recipes 1.5). Lengths
  of texts are not published; ours: plain text as in `mix`; captions 30 to 300 tokens; an edit has two pictures and
  10 to 100 tokens; an interleaved sample 2 to 6 pictures and 50 to 400 tokens each.

A picture has the first 12, 16 or 18 scales of NextFlow, without the 1x1 (900, 3684, 10,084 places less one); inside a
scale attention is full. Two budgets: `equal memory`, the cap on tokens of the fixed length and 0.96 of what a
fixed-length pack costs on average (costlier samples are lone), and `costliest`, that of the costliest sample, which
needs a higher cap. The smallest cap that keeps imbalance at 1.01 or less is searched from the longest sample up.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import machine
from models import flops
from models.flops import TrunkShape
from models.tokenizers.scales import NEXTFLOW
from stages import packing_report
from stages.packing import Budget, Plan, measures, plan, training_order
from stages.packing_order import even_steps

TRUNK = TrunkShape(layers=28, width=3584, heads=28, kv_heads=4, ffn=18944)
VOCABULARY = 152_064 + 32_768
RANKS = 64
LONGEST = 32_768
GROUP_ONE_IN = 8192
EQUAL_SHARE = 0.96
"""Budget under equal memory, over the mean cost of a fixed-length pack: at 1.0 packs of short samples, full by tokens,
stay below it and differ in cost a little more (imbalance up to 0.001 higher)."""
STEP = 256
"""Tokens: how finely the smallest cap is searched."""
TARGET = 1.01
PADDING_BATCHES = (1, 2, 4, 8, 16)
LEVELS = {256: 12, 512: 16, 1024: 18}
STAGES: dict[int, dict[str, int]] = {
    256: {"text": 662, "pair": 1891 + 520, "interleaved": 147},
    512: {"text": 700, "pair": 345, "edit": 20, "interleaved": 5},
    1024: {"text": 47_000, "pair": 10_000, "edit": 2_000, "interleaved": 500},
}
"""Samples by kind (millions, or thousands in the last); T2I and I2T are of the same length."""


@dataclass(frozen=True)
class Corpus:
    """What packing knows of samples."""

    places: NDArray[np.uint8]
    costs: NDArray[np.float64]
    tokens: NDArray[np.int64]


def corpus(rng: np.random.Generator, kinds: Sequence[tuple[str, int]], shares: Sequence[float], num: int) -> Corpus:
    """Samples of kinds (name, scales of a picture) by their shares."""
    kind = rng.choice(len(kinds), num, p=np.array(shares) / np.sum(shares))
    words, pictures, scales = np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, np.int64)
    for i, (name, levels) in enumerate(kinds):
        where = np.flatnonzero(kind == i)
        some = len(where)
        scales[where] = levels
        if name == "text":
            words[where] = np.clip(rng.lognormal(np.log(600), 1.5, some), 16, LONGEST).astype(np.int64)
        elif name == "pair":
            words[where], pictures[where] = rng.integers(30, 301, some), 1
        elif name == "edit":
            words[where], pictures[where] = rng.integers(10, 101, some), 2
        else:
            pictures[where] = rng.integers(2, 7, some)
            words[where] = rng.integers(50, 401, some) * pictures[where]
    places, inside = (np.array(found)[scales] for found in zip(*map(_picture, range(19)), strict=True))
    tokens = words + pictures * (places + 1)  # BOI is an input: it predicts the 1x1
    pairs = tokens * (tokens + 1) // 2 + pictures * inside
    per_token, per_pair, per_target = (
        flops.cost(TRUNK, VOCABULARY, *one).train for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    names = rng.integers(256, size=(num, 16), dtype=np.uint8)
    return Corpus(names, (per_token + per_target) * tokens + float(per_pair) * pairs, tokens)


def _picture(scales: int) -> tuple[int, int]:
    """Input tokens of a picture, and attended pairs inside its scales on top of the causal ones."""
    sides = [side * side for side in NEXTFLOW[1:scales]]
    return sum(sides), sum(n * (n - 1) // 2 for n in sides)


def recipe_mix(num: int) -> Corpus:
    """The mix of model-recipes 2.6."""
    kinds = [("text", 0), ("pair", 12), ("pair", 16), ("pair", 18)]
    return corpus(np.random.default_rng(0), kinds, (0.45, 0.15, 0.35, 0.05), num)


def mixes(num: int) -> dict[str, Corpus]:
    """The four mixes."""
    found = {"mix": recipe_mix(num)}
    for pixels, shares in STAGES.items():
        kinds = [(name, LEVELS[pixels]) for name in shares]
        found[f"stage {pixels}"] = corpus(np.random.default_rng(pixels), kinds, list(shares.values()), num)
    return found


def packed(given: Corpus, budget: Budget, window: int) -> tuple[Plan, dict[str, float]]:
    """Plan, order and report."""
    found = plan(given.places, given.costs, given.tokens, budget)
    orders, moves = training_order(found, given.places, found.sums(given.costs), 0, RANKS, window)
    fixed = max(LONGEST, int(given.tokens.max()))
    report = measures(
        found,
        given.costs,
        given.tokens,
        budget,
        places=given.places,
        orders=orders,
        global_batch=RANKS,
        trunk=TRUNK,
        fixed_tokens=fixed,
    )
    return found, report | moves


def smallest_cap(given: Corpus, budget: Budget, window: int) -> int | None:
    """Smallest cap on tokens, in steps of 256, with imbalance 1.01 or less; None if even no cap is not enough."""

    def even(cap: int) -> bool:
        capped = replace(budget, max_tokens=cap)
        found = plan(given.places, given.costs, given.tokens, capped)
        loads = found.sums(given.costs)
        orders, _ = training_order(found, given.places, loads, 0, RANKS, window)
        in_order = np.empty(len(loads))
        in_order[orders] = loads
        return packing_report.steps(in_order, RANKS)["imbalance"] <= TARGET

    low, high = int(given.tokens.max()), 8 * LONGEST
    if even(low):
        return low
    if not even(high):
        return None
    while high - low > STEP:
        middle = (low + high) // 2
        low, high = (low, middle) if even(middle) else (middle, high)
    return high


def compare(name: str, given: Corpus, window: int) -> None:
    """Print both baselines and ours under both budgets."""
    arrivals = packing_report.by_place(given.places)
    costs, tokens = given.costs[arrivals], given.tokens[arrivals]
    room = max(LONGEST, int(tokens.max()))
    fixed = packing_report.fixed_length(costs, tokens, room)
    print(
        f"\n{name}: {len(tokens):,} samples, {tokens.sum() / 1e6:.0f} M tokens, longest {tokens.max():,};"
        f" costliest {costs.max() / 1e12:.0f} TFLOPs = {costs.max() / fixed.mean():.2f} of a mean fixed-length pack"
    )
    times = []
    for batch in PADDING_BATCHES:
        padded, share = packing_report.padded(costs, tokens, TRUNK, batch)
        times.append(_baseline(f"padding, batches of {batch}", padded, tokens, f"padding {share:.1%}"))
    fill = f"fill {tokens.sum() / (len(fixed) * room):.1%}"
    _baseline(f"fixed {room:,}, first fit", fixed, tokens, fill)
    ordered = fixed[np.concatenate(even_steps(fixed, RANKS, window))]
    _baseline("the same, our order of steps", ordered, tokens, fill)
    equal = Budget(flops=EQUAL_SHARE * float(fixed.mean()), max_tokens=room, group_one_in=GROUP_ONE_IN)
    costliest = replace(equal, flops=float(costs.max()))
    _ours("equal memory", given, equal, window, min(times))
    cap = smallest_cap(given, costliest, window)
    if cap:
        _ours("costliest, smallest cap", given, replace(costliest, max_tokens=cap), window, min(times))
    for label, budget, found in (
        ("equal memory", equal, smallest_cap(given, equal, window)),
        ("costliest", costliest, cap),
    ):
        shown = f"{found:,} tokens" if found else "none is enough"
        print(f"  smallest cap for imbalance <= {TARGET}, {label} ({budget.flops / 1e12:.0f} TFLOPs): {shown}")


def _baseline(label: str, costs: NDArray[np.float64], tokens: NDArray[np.int64], note: str) -> float:
    """Print a baseline; time of its ranks in FLOPs."""
    found = packing_report.steps(costs, RANKS)
    rate = tokens.sum() / (found["time"] / 1e15)
    print(
        f"  {label:<28} imbalance {found['imbalance']:.3f}  idle {found['idle']:.1%}  {note}"
        f"  {rate:,.0f} tokens a PFLOP of the ranks' time"
    )
    return found["time"]


def _ours(label: str, given: Corpus, budget: Budget, window: int, least_padded: float) -> None:
    found, report = packed(given, budget, window)
    time_of_ranks = float(given.costs.sum()) / (1 - report["idle"])
    print(
        f"  ours, {label:<22} imbalance {report['imbalance']:.4f} (worst step {report['worst_imbalance']:.3f})"
        f"  idle {report['idle']:.2%}  padding 0  dropped {report['dropped']:.0f}  fill {report['fill']:.1%}"
        f"  most tokens {report['most_tokens']:,.0f}  lone {int(found.lone.sum())} of {len(found.packs)}"
        f"  {given.tokens.sum() / (time_of_ranks / 1e15):,.0f} tokens a PFLOP\n"
        f"      throughput: {report['throughput_over_pad_to_longest']:.2f} x padding in batches of 8,"
        f" {least_padded / time_of_ranks:.2f} x the best padding; {report['throughput_over_fixed_length']:.3f} x fixed"
        f" (bound {report['throughput_bound_over_fixed_length']:.3f}: all that fixed idles)\n"
        f"      moved: packs {report['moved_steps_mean']:.1f} steps (at most {report['moved_steps_max']:.0f};"
        f" lone {report['lone_moved_steps_max']:.0f} of {report['num_steps']:.0f}), samples"
        f" {report['carried_places_mean']:,.0f} places in their group (at most {report['carried_places_max']:,.0f})"
    )


def speed(num: int, runs: int) -> float:
    """Samples a second of plan(), median of runs; printed with the peak of the process's memory."""
    given = recipe_mix(num)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    budget = Budget(flops=1.49e15, max_tokens=LONGEST, group_one_in=GROUP_ONE_IN)
    seconds, cpu = _timed(lambda: plan(given.places, given.costs, given.tokens, budget), runs)
    found = plan(given.places, given.costs, given.tokens, budget)
    loads = found.sums(given.costs)
    ordering, _ = _timed(lambda: training_order(found, given.places, loads, 0, RANKS), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"plan: {num:,} samples in {statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f}),"
        f" {num / statistics.median(seconds):,.0f} samples/s (by CPU time {num / statistics.median(cpu):,.0f});"
        f" {len(found.packs):,} packs ordered in {ordering[0]:.2f} s; peak {peak:.2f} GB, {before:.2f} GB of it reached"
        " before plan() by making the corpus",
        flush=True,
    )
    return num / statistics.median(seconds)


def _timed(work: Callable[[], object], runs: int) -> tuple[list[float], list[float]]:
    wall, cpu = [], []
    for _ in range(runs):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return wall, cpu


def main() -> None:
    """The mixes, then speed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=60_000)
    arguments.add_argument("--window", type=int, default=16, help="steps a pack may move")
    arguments.add_argument("--speed-samples", type=int, default=1_000_000)
    arguments.add_argument("--large", action="store_true", help="speed and memory at 10^7 samples too")
    given = arguments.parse_args()
    print(machine("numpy"), flush=True)
    for name, found in mixes(given.samples).items():
        compare(name, found, given.window)
    speed(given.speed_samples, 5)
    if given.large:
        speed(10_000_000, 1)


if __name__ == "__main__":
    main()
