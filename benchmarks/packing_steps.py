"""Packing measured: tokens a second of training on 2 CPU ranks under three ways to pack, and how well costs predict it.

    python -m benchmarks.packing_steps [--runs 5] [--samples 360]

The tiny trunk (4 layers, width 128, vocabulary 1800) on NextFlow's kind of mix, scaled down: 45 % text (log-normal,
median 120 tokens, sigma 1.2, at most 2048), 20 % pictures of 8 scales (side 10), 30 % of 11 (side 14), 5 % of 14 (side
20), each with 10 to 80 tokens of text. Two processes of one thread each; a step ends for both with an all-reduce of
the gradients' sum, as in data-parallel training. One step is: padding, 8 neighbours padded to the longest; fixed
length, 2048 tokens first fit; ours, packs of equal predicted FLOPs under a cap of 4096 tokens, the budget that of the
costliest sample or the mean fixed-length pack, whichever is more. All train on the same samples. Forward and backward,
no optimizer. Masks are dense on a CPU: a next-scale document costs its full square, which the costs, made for kernels
that skip what nobody sees, do not count; the correlation shows how much that matters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing

from benchmarks.measure import in_turn, machine, row
from models import flops
from models.any_to_any import AnyToAny
from models.batch import Batch, batch_of
from models.flops import TrunkShape
from models.layout import Document, Format, Layout, Picture, Segment, document, spans
from models.places import places, tokens_of
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.scales import NEXTFLOW
from models.tokenizers.text import ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary
from stages.packing import Budget, plan, training_order

TRUNK = TrunkShape(layers=4, width=128, heads=4, kv_heads=2, ffn=384)
FORM = Format(
    layout=Layout(vision="scales", marks=Marks(rows="none", frames=False, size=False), scale_alpha=0.9),
    vocabulary=Vocabulary.compact(1280, 512),
)
PARTS = Parts(positions="scales", scale_embeddings=True)
RANKS, FIXED, PADDING_BATCH = 2, 2048, 8
Packs = list[list[int]]


def samples(num: int) -> list[Document]:
    """The mix."""
    rng = np.random.default_rng(0)
    made = []
    for kind in rng.choice(4, num, p=(0.45, 0.2, 0.3, 0.05)):
        if kind == 0:
            length = int(np.clip(rng.lognormal(np.log(120), 1.2), 8, FIXED - 2))
            made.append(document([rng.integers(256, size=length).tolist()], FORM, ByteTokenizer()))
            continue
        grids = tuple((1, side, side) for side in NEXTFLOW[: (0, 9, 11, 13)[kind]])
        count = sum(h * w for _, h, w in grids)
        words = rng.integers(256, size=rng.integers(10, 81)).tolist()
        made.append(document([words, Picture(grids=grids, ids=rng.integers(512, size=count))], FORM, ByteTokenizer()))
    return made


def cost(one: Document) -> float:
    """Training FLOPs."""
    both = spans(one.segments)
    learnt = sum(int(np.count_nonzero(part)) for part in one.weights)
    length = sum(n for n, _ in both)
    return flops.cost(TRUNK, FORM.vocabulary.size, length, flops.segment_pairs(both), learnt).train


def ways(documents: Sequence[Document]) -> dict[str, Packs]:
    """Packs of each way, in the order of training; consecutive ones make a step."""
    costs = np.array([cost(one) for one in documents])
    lengths = np.array([sum(n for n, _ in spans(one.segments)) for one in documents])
    everything = list(range(len(documents)))
    padding = [everything[start : start + PADDING_BATCH] for start in range(0, len(documents), PADDING_BATCH)]
    fixed = _first_fit(lengths)
    mean = float(np.mean([costs[pack].sum() for pack in fixed]))
    budget = Budget(flops=max(mean, float(costs.max())), max_tokens=2 * FIXED, group_one_in=2**40)
    names = np.random.default_rng(1).integers(256, size=(len(documents), 16), dtype=np.uint8)
    found = plan(names, costs, lengths, budget)
    orders, _ = training_order(found, names, found.sums(costs).astype(float), 0, RANKS)
    ours = [found.packs[i].tolist() for i in np.argsort(orders)]
    return {"padding": padding, "fixed length": fixed, "ours": ours}


def _first_fit(lengths: np.ndarray) -> Packs:
    """To FIXED tokens, eight packs open."""
    opened: list[tuple[int, list[int]]] = []
    closed: Packs = []
    for number, length in enumerate(lengths.tolist()):
        home = next((i for i, (room, _) in enumerate(opened) if room >= length), None)
        if home is None:
            if len(opened) == 8:
                closed.append(opened.pop(int(np.argmin([room for room, _ in opened])))[1])
            opened.append((FIXED, []))
            home = len(opened) - 1
        room, pack = opened[home]
        pack.append(number)
        opened[home] = (room - length, pack)
    return closed + [pack for _, pack in opened]


def batch(documents: Sequence[Document], padded: bool) -> Batch:
    """A pack; `padded`: each document with tokens that nobody learns, up to the longest."""
    given = list(documents)
    if padded:
        longest = max(sum(n for n, _ in spans(one.segments)) for one in given)
        given = [_longer(one, longest - sum(n for n, _ in spans(one.segments))) for one in given]
    return batch_of(places(tokens_of(given)), FORM, PARTS)


def _longer(one: Document, tail: int) -> Document:
    made = Document(tokens=[*one.tokens], shown=[*one.shown], weights=[*one.weights], segments=[*one.segments])
    made.add([FORM.vocabulary.pad] * tail, Segment(kind="text", length=tail), 0.0)
    return made


def train(rank: int, way: str, packs: Packs, num_samples: int, address: str, found: Any) -> None:
    """One rank: every step's own pack, forward and backward, then the all-reduce that ends the step for both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    documents = samples(num_samples)
    model = AnyToAny(
        TrunkConfig(shape=TRUNK, vocabulary_size=FORM.vocabulary.size, rope_sections=(6, 6, 4)), PARTS, FORM
    )
    model.initialise(0)
    own = [batch([documents[n] for n in pack], way == "padding") for pack in packs[rank::RANKS]]
    steps = len(packs) // RANKS
    divisors = torch.tensor([1000.0, 1.0])
    model(own[0], divisors).total.backward()
    dist.barrier()
    started, seconds = time.perf_counter(), []
    for number in range(steps):
        before = time.perf_counter()
        model(own[number], divisors).total.backward()
        seconds.append(time.perf_counter() - before)
        dist.all_reduce(torch.zeros(1))
    found.put((rank, time.perf_counter() - started, seconds))
    dist.destroy_process_group()


def measure(way: str, packs: Packs, num_samples: int) -> tuple[float, list[list[float]]]:
    """Seconds of all whole steps, and of each pack, by rank."""
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    port = 20_000 + (hash((way, time.time_ns())) % 20_000)
    arguments = (way, packs, num_samples, f"tcp://127.0.0.1:{port}", found)
    ranks = [context.Process(target=train, args=(rank, *arguments)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    told = sorted(found.get() for _ in ranks)
    for process in ranks:
        process.join()
    return max(wall for _, wall, _ in told), [seconds for _, _, seconds in told]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=360)
    args = parser.parse_args()
    print(machine("torch"))
    documents = samples(args.samples)
    packs = ways(documents)
    costs = [cost(one) for one in documents]
    lengths = [sum(n for n, _ in spans(one.segments)) for one in documents]
    pairs: dict[str, list[tuple[float, float]]] = {way: [] for way in packs}

    def run(way: str) -> float:
        whole = packs[way][: len(packs[way]) // RANKS * RANKS]
        wall, seconds = measure(way, whole, args.samples)
        told = [sum(costs[n] for n in pack) for pack in whole]
        pairs[way] += [(told[RANKS * i + rank], s) for rank, own in enumerate(seconds) for i, s in enumerate(own)]
        return sum(lengths[n] for pack in whole for n in pack) / wall

    figures = in_turn({way: (lambda _, way=way: run(way)) for way in packs}, args.runs, warm_ups=1)
    for way, found in figures.items():
        print(row(way, found, "tok/s"))
        told = np.array([sum(costs[n] for n in pack) for pack in packs[way][: len(packs[way]) // 2 * 2]]).reshape(-1, 2)
        own = np.array(pairs[way])
        correlation = (
            "" if way == "padding" else f", predicted and measured time correlate {np.corrcoef(own.T)[0, 1]:.3f}"
        )
        imbalance = float(np.mean(told.max(1) / told.mean(1)))
        print(f"    {len(packs[way])} packs, predicted imbalance {imbalance:.3f}{correlation}")
    ours = statistics.median(figures["ours"])
    print(f"ours over padding {ours / statistics.median(figures['padding']):.2f}")
    print(f"ours over fixed length {ours / statistics.median(figures['fixed length']):.2f}")


if __name__ == "__main__":
    main()
