"""1024 GPUs and 6T tokens, simulated: what our packer, loader, checkpoints and restarts would cost. No GPU is used.

    python -m benchmarks.scale_out [--ranks 1024] [--tokens 6e12] [--tokens-per-s 2517.4] ...

What can be measured on one core in seconds is (benchmarks/scale_measure.py); all else is an argument, with these
sources: NextFlow's 1024 GPUs, mix by stage and 2517.4 tokens/s a GPU (arXiv 2601.02204, model-recipes 1.5; the global
batch is not published: one pack a rank, conf/scale/nextflow-7b.yaml); interruptions of Llama 3 (arXiv 2407.21783: 419
unexpected ones in 54 days on 16,384 GPUs). Latencies of the store, GB/s, and seconds of Ray's and the GPU's start are
assumptions, no measurements. docs/training.md says what the tables mean.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import textwrap
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, table
from benchmarks.packing import GROUP_ONE_IN, LEVELS, LONGEST, STAGES, TRUNK, Corpus, corpus
from benchmarks.scale_measure import BYTES_OF_OPTIMIZER, BYTES_OF_WEIGHT, Measured, measured
from benchmarks.scale_waits import prefetch, stragglers
from pipelines.job import JOB_ROWS_PER_FRAGMENT
from stages import packing_report
from stages.packing import Budget, plan, training_order
from stages.train.stream import ORDER_ROWS

GB = 1e9
TRILLIONS = {256: 3.4, 512: 1.8, 1024: 0.4}
"""Tokens of NextFlow's pretraining stages (model-recipes 1.5), the two of 1024 pixels together."""


@dataclass(frozen=True)
class Size:
    """A run in numbers that follow from the inputs."""

    pack_tokens: float
    plan_s: float
    """The planner's, a sample."""
    samples: float
    step_s: float
    packs: float
    days: float


def imbalance(given: Namespace) -> Size:
    """Max over mean of FLOPs by step; tokens of a pack, samples and planning of all stages together."""
    budget = Budget(flops=given.flops_per_pack, max_tokens=given.max_tokens, group_one_in=GROUP_ONE_IN)
    rows, packs, samples, spent, planned = [], 0.0, 0.0, 0.0, 0
    for pixels, tokens in TRILLIONS.items():
        found = mix(pixels, given.sim_steps * given.ranks * given.max_tokens * 0.7)
        began = time.perf_counter()
        made = plan(found.places, found.costs, found.tokens, budget)
        spent, planned = spent + time.perf_counter() - began, planned + len(found.costs)
        loads, arrivals = made.sums(found.costs).astype(np.float64), packing_report.by_place(found.places)
        costs, sizes = found.costs[arrivals], found.tokens[arrivals]
        padded = packing_report.padded(costs, sizes, TRUNK, packing_report.PADDING_BATCH)[0]
        fixed = packing_report.fixed_length(costs, sizes, max(LONGEST, int(sizes.max())))
        ways = [packing_report.steps(way, given.ranks)["imbalance"] for way in (padded, fixed)]
        for groups, batch in ((given.ranks, given.ranks), (given.groups, given.groups), (given.groups, given.ranks)):
            orders, _ = training_order(made, found.places, loads, 0, batch)
            ordered = np.empty(len(loads))
            ordered[orders] = loads
            whole = ordered[: len(ordered) // batch * batch].reshape(-1, batch // groups, groups).sum(1)
            uneven = whole.max(1) / whole.mean(1)
            ways += [float(uneven.mean()), float(uneven.max())]
        mean = found.tokens.sum() / len(loads)
        samples += given.tokens * tokens / sum(TRILLIONS.values()) / found.tokens.mean()
        packs += given.tokens * tokens / sum(TRILLIONS.values()) / mean
        cells = [f"{ways[0]:.2f}", f"{ways[1]:.3f}", *(f"{a:.4f} ({b:.3f})" for a, b in zip(ways[2::2], ways[3::2], strict=True))]  # fmt: skip  # noqa: E501
        rows.append([f"{pixels} px", f"{len(loads):,}", f"{mean:,.0f}", *cells])
    r, g = given.ranks, given.groups
    head = ["stage", "packs", "tokens/pack", "padding", "fixed", f"{r} x 1", f"{g} x 1", f"{g} x {r // g}"]
    table("a. Imbalance, mean (worst step); ours by ranks or groups x packs of a step each", head, rows)
    pack_tokens = given.tokens / packs
    step_s = pack_tokens / given.tokens_per_s
    return Size(pack_tokens, spent / planned, samples, step_s, packs, packs / r * step_s / 86400)


def mix(pixels: int, tokens: float) -> Corpus:
    """Samples of a stage, of about so many tokens."""
    kinds, shares = [(name, LEVELS[pixels]) for name in STAGES[pixels]], list(STAGES[pixels].values())
    a_sample = corpus(np.random.default_rng(pixels), kinds, shares, 20_000).tokens.mean()
    return corpus(np.random.default_rng(pixels), kinds, shares, int(tokens / a_sample))


def fan_out(given: Namespace, size: Size, at: Measured) -> None:
    """The object store, the loader's threads, and the start of a rank."""
    r, rate = given.ranks, given.tokens_per_s
    shared, stored = r // given.groups, at.stored_bytes
    fragments = size.packs / JOB_ROWS_PER_FRAGMENT
    manifest = fragments * at.fragment_bytes
    order_s = size.packs * (at.order_s + given.latency[0] / ORDER_ROWS)
    order_reads = size.packs * at.order_requests
    rows = [
        ["tokens/s", f"{rate:,.0f}", f"{rate * r / 1e6:,.2f} M"],
        ["packs read, of 1 a rank and step", f"1 in {size.step_s:.1f} s", f"{r / size.step_s:,.0f} /s"],
        ["bytes of packs", f"{rate * stored / 1e3:,.1f} kB/s", f"{rate * stored * r / 1e6:,.1f} MB/s"],
        [f"  with {shared} sequence ranks, which read the same", "", f"{shared * rate * stored * r / 1e6:,.1f} MB/s"],
        ["reads of the store", f"{at.requests / size.step_s:.2f} /s", f"{at.requests * r / size.step_s:,.0f} /s"],
        ["prefetch thread, share of a core", f"{rate * at.load_s:.2%}", ""],
        ["training thread: tensors of a step", f"{size.pack_tokens * at.batch_s * 1e3:.1f} ms", ""],
        ["training thread: rows of a step, first epoch", f"{r * at.draw_s[0] * 1e3:.1f} ms", ""],
        ["  later epochs", f"{r * at.draw_s[1] * 1e3:.1f} ms", ""],
        ["start: manifest of packs", f"{manifest / 1e6:,.1f} MB", f"{manifest * r / GB:,.1f} GB"],
        ["start: opening it, local disk", f"{fragments * at.open_s:.2f} s", ""],
        ["start: order of all packs read", f"{order_s / 3600:.1f} h", f"{order_reads * r / 1e6:,.0f} M reads"],
        ["memory: order and positions", f"{size.packs * 16 / GB:.1f} GB", f"{size.packs * 16 * r / 1e12:.1f} TB"],
    ]  # fmt: skip
    print(f"\n{given.tokens:.3g} tokens: {size.packs:,.0f} packs of {size.pack_tokens:,.0f} tokens,"
          f" {size.packs / r:,.0f} steps of {size.step_s:.1f} s, {size.days:.1f} days;\n"
          f"{given.tokens * stored / 1e12:.1f} TB in Lance, {fragments:,.0f} fragments")  # fmt: skip
    table("b. Loader", ["", "a rank", "all"], rows)


def failures(given: Namespace, size: Size, at: Measured) -> None:
    """Checkpoints, the best interval (Young), and what a failure costs, by size of the model."""
    mtbf_s = given.days_seen * 86400 * given.gpus_seen / given.failures_seen / given.ranks
    order_s = size.packs * (at.order_s + given.latency[0] / ORDER_ROWS)
    head = [f"{n:g}B" for n in given.billions]
    saves, starts, lean = [], [], []
    best = saved = 0.0
    for n in (b * 1e9 for b in given.billions):
        whole, own = BYTES_OF_WEIGHT * n / GB, BYTES_OF_OPTIMIZER * n / given.ranks / GB
        copy_s, saved = (whole + own) / given.pcie_gb_s, whole + own * given.ranks
        through = 1 / given.disk_gb_s + 1 / given.store_gb_s + 1 / at.sha_gb_s
        write_s, others_s = whole * through, own * (8 / given.disk_gb_s + 8 / given.store_gb_s + 1 / at.sha_gb_s)
        fetch_s = 8 * whole * (2 / given.disk_gb_s + 1 / given.store_gb_s) + whole / at.sha_gb_s
        check_s = whole * (2 / given.disk_gb_s + 1 / given.store_gb_s + 1 / at.sha_gb_s)
        match_s = given.ranks * at.num_parameters * at.overlap_s
        steps = [given.ray_s, at.import_s, order_s, n * at.weight_s, check_s, fetch_s, match_s, given.warm_s]
        restart = sum(steps)
        once = given.ray_s + at.import_s + whole * (1 / given.store_gb_s + 1 / at.sha_gb_s) + given.warm_s
        best = max(math.sqrt(2 * copy_s * mtbf_s), write_s)
        share = [copy_s / best, (best / 2 + write_s) / mtbf_s, restart / mtbf_s]
        saves.append([f"{saved:,.0f} GB", f"{whole:.0f} GB", f"{own:.2f} GB", f"{copy_s:.1f} s",
                      f"{own / given.pcie_gb_s:.2f} s", f"{write_s:.0f} s", f"{others_s:.1f} s", f"{best / 60:.0f} min",
                      *(f"{x:.2%}" for x in (*share, sum(share))),
                      f"{4 * n / GB:.0f} GB", f"{8 * 4 * n / GB:,.0f} GB", f"{16 * whole:,.0f} GB"])  # fmt: skip
        starts.append([f"{s:,.0f} s" for s in (*steps, restart)] + [f"{(best / 2 + write_s + restart) / 60:.0f} min"])
        lean.append([f"{once:,.0f} s", f"{(copy_s / best) + (best / 2 + write_s + once) / mtbf_s:.2%}"])
    names = ["checkpoint", "model.safetensors, rank 0 alone", "a rank's optimizer file (ZeRO)",
             "all wait: rank 0 copies its files", "  another rank copies", "in the background: rank 0 writes",
             "  another rank writes", "best interval (Young)", "lost: waiting", "lost: work since the last one",
             "lost: restarts", "lost, in all", "fp32 model on a GPU at start", "  on the host of 8 ranks",
             "temporary files of 8 ranks at start"]  # fmt: skip
    often = f"a failure every {mtbf_s / 3600:.1f} h, {size.days * 86400 / mtbf_s:.0f} in the run"
    table(f"c. Checkpoints; {often}", ["", *head], _turned(names, saves))
    names = ["Ray, processes (assumed)", "imports", "order of all packs", "first weights (thrown away)",
             "last_sound: one rank checks rank 0's file", "every rank fetches that file", "restore: who holds what",
             "first steps (assumed)", "restart", "a failure costs, with lost work"]  # fmt: skip
    table("d. Restart", ["", *head], _turned(names, starts))
    table("   The same with the order as a small file, weights once a node, and no avoidable rows",
          ["", *head], _turned(["restart", "lost, in all"], lean))  # fmt: skip
    limits(given, size, at, mtbf_s, best, saved)


def limits(given: Namespace, size: Size, at: Measured, mtbf_s: float, best_s: float, saved_gb: float) -> None:
    """What one process does, or every rank; `best_s`, `saved_gb`: of the largest model's checkpoints."""
    r, entries = given.ranks, given.ranks * at.num_parameters
    kept, manifest, parse_s = size.days * 86400 / best_s, entries * at.entry_bytes, entries * at.parse_s
    held = JOB_ROWS_PER_FRAGMENT * size.pack_tokens * at.row_bytes
    rows = [
        ["packs: written by one process", f"{given.tokens * at.write_s / 86400:.0f} days", "pipelines/job.py"],
        ["packs: rows held for a fragment", f"{held / GB:.0f} GB", "pipelines/job.py"],
        ["packs: planned by one process", f"{size.samples:.2g} samples, {size.samples * size.plan_s / 3600:.1f} h",
         "packing_plan.py"],
        ["positions of packs, sent to each rank", f"{size.packs * 8 / GB:.1f} GB", "pipelines/job.py"],
        ["checkpoint's manifest, ZeRO-3", f"{manifest / 1e6:.0f} MB, parsed in {parse_s:.1f} s", "saver.py"],
        [f"  keep=null, {given.billions[-1]:g}B", f"{kept:,.0f} of them, {kept * saved_gb / 1e3:,.0f} TB", "saver.py"],
        ["all_gather_object, on each rank", f"{entries * at.unpickle_s:.1f} s", "saver.py"],
        ["sum of a step", f"{8 * (10 + 64 + 2 + r) / 1e3:.1f} kB", "train/rank.py"],
        ["pulses at one actor, not measured", f"{r} /s", "stages/workers/pulse.py"],
    ]  # fmt: skip
    table("e. What one process does, or every rank", ["", "cost", "where"], rows)


def _turned(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]


def main() -> None:
    """Inputs, measurements, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = {"ranks": 1024, "groups": 128, "max-tokens": 49_152, "sim-steps": 33, "latency-steps": 3000}
    for name, value in whole.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    others = {
        "tokens": 6e12, "tokens-per-s": 2517.4, "flops-per-pack": 2.059e15, "pcie-gb-s": 10, "disk-gb-s": 2,
        "store-gb-s": 2, "days-seen": 54, "gpus-seen": 16_384, "failures-seen": 419, "ray-s": 60, "warm-s": 60,
    }  # fmt: skip
    for name, value in others.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--billions", type=float, nargs="+", default=[1, 8, 34])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--latency", type=float, nargs=4, default=[0.05, 0.5, 3, 30])
    parser.add_argument("--ahead", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    given = parser.parse_args()
    print(machine("torch", "pylance"))
    print(textwrap.fill("inputs: " + ", ".join(f"{name} {value}" for name, value in vars(given).items()), 100))
    size = imbalance(given)
    stragglers(given)
    with tempfile.TemporaryDirectory(prefix="plait-scale-") as root:
        at = measured(given.ranks, int(size.packs / JOB_ROWS_PER_FRAGMENT), 400_000, Path(root))
    plain = {name: value for name, value in vars(at).items() if name != "draw_s"}
    print(
        "\n" + textwrap.fill("measured here: " + ", ".join(f"{name} {value:.3g}" for name, value in plain.items()), 100)
    )
    fan_out(given, size, at)
    prefetch(given, size.step_s, at.load_s * size.pack_tokens, at.requests)
    failures(given, size, at)


if __name__ == "__main__":
    main()
