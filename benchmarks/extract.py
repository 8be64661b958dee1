"""Extraction against the plain loop (decode, resize, encode one clip at a time), and how busy the encoder is.

    plait run --to clips source=../shared/data/images root=/tmp/photographs       clips of mixed shapes
    python -m benchmarks.extract /tmp/photographs --runs 5

Three tokenizers with fresh weights (what they compute costs the same as trained): `vq-tiny`, a VQGAN of middle size
and a larger one, at their pixels' budget and in the pictures' own shapes. The plain loop has torch's threads on all
cores; the stage has one worker with one thread per core, as the engine starts them, fed with `batch_rows` clips at a
time. Processes are started and clips read before the clock. Busy is the share of a worker's time that its encoder
computes, mean of all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import in_turn, machine, row
from infra.bucket import open_bucket
from infra.store import SnapshotReader
from models.tokenizers.interface import build, load_tokenizer, to_pixels
from models.tokenizers.shapes import TowerShape, VqShape
from pipelines.standing import Standing
from stages.base import BadRow
from stages.extract import Indices
from stages.frames import View, prepare

BATCH_ROWS = 32
COLUMNS = ["key", "label", "media", "source_kind", "num_frames", "fps", "held_out"]
MIDDLE = TowerShape(patch=2, width=32, multipliers=(1, 2, 2), blocks=1, norm_groups=16)
LARGER = TowerShape(patch=1, width=48, multipliers=(1, 2, 2, 4), blocks=1, norm_groups=16, attention=True)
TINY = TowerShape(patch=4, width=32, multipliers=(1, 2), blocks=1, norm_groups=0)
SETTINGS = {"tiny": (TINY, 64), "middle": (MIDDLE, 128), "larger": (LARGER, 128)}


class Kit:
    """Hands out the tokenizer's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, dataset: str) -> Path:
        """The folder."""
        return self.folder


def plain(rows: list[dict[str, Any]], folder: Path, size: int) -> float:
    """Seconds of the loop that everybody writes first."""
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer, view = load_tokenizer(folder), View(size=size, frames=4, fit="area")
    started = time.perf_counter()
    for one in rows:
        try:
            seen = prepare(one["media"], one["source_kind"], one["num_frames"], one["fps"], view, tokenizer.stride)
        except BadRow:
            continue
        with torch.inference_mode():
            tokenizer.encode(to_pixels(torch.from_numpy(seen.pictures)[None]))
    return time.perf_counter() - started


def worker(rows: list[dict[str, Any]], folder: Path, size: int, gate: Any, out: Any) -> None:
    """One actor's share; tells (busy s, its wall s, end) of each."""
    stage = Indices(size=size, fit="area", frames_per_clip=4)
    tools = stage.setup(Kit(folder))
    busy, encode = 0.0, tools.tokenizer.encode

    def timed(pixels: torch.Tensor) -> Any:
        nonlocal busy
        started = time.perf_counter()
        found = encode(pixels)
        busy += time.perf_counter() - started
        return found

    tools.tokenizer.encode = timed
    gate.wait()
    started = time.perf_counter()
    for at in range(0, len(rows), BATCH_ROWS):
        stage.process(rows[at : at + BATCH_ROWS], tools)
    out.put((busy, time.perf_counter() - started))


def staged(rows: list[dict[str, Any]], folder: Path, size: int, shares: list[float]) -> float:
    """Seconds of the slowest worker."""
    context, count = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    gate, out = context.Barrier(count), context.Queue()
    processes = [context.Process(target=worker, args=(rows[i::count], folder, size, gate, out)) for i in range(count)]
    for process in processes:
        process.start()
    told = [out.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    shares.append(sum(busy for busy, _ in told) / sum(wall for _, wall in told))
    return max(wall for _, wall in told)


def main() -> None:
    """Print a table per tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--times", type=int, default=4, help="how often the clips are repeated")
    given = parser.parse_args()
    bucket = open_bucket(given.root, None, None)
    snapshot = Standing(bucket).snapshot("clips")
    reader = SnapshotReader(bucket, snapshot, np.arange(snapshot.rows))
    rows = reader.take(range(snapshot.rows), COLUMNS).to_pylist() * given.times
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    print(machine("torch", "av", "pillow"))
    for name, (tower, size) in SETTINGS.items():
        torch.manual_seed(0)
        shape = VqShape(kind="vq", tower=tower, codebook_size=8192, code_dim=8)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            build(shape).save(folder)
            shares: list[float] = []
            used = rows if name == "tiny" else rows[: len(rows) // given.times]
            figures = in_turn(
                {"plain": lambda _: plain(used, folder, size), "stage": lambda _: staged(used, folder, size, shares)},  # noqa: B023
                given.runs,
            )
        rates = {who: [len(used) / s for s in seconds] for who, seconds in figures.items()}
        print(f"\n{name}: {size} x {size} pixels of budget, {len(used)} clips")
        print(row("one clip at a time", rates["plain"], "clips/s"))
        print(row("Indices", rates["stage"], "clips/s", rates["plain"]))
        print(row("encoder busy", [100 * s for s in shares[-given.runs :]], "%"))


if __name__ == "__main__":
    main()
