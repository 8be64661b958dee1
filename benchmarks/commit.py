"""What the driver itself costs: plan, ledger, commit and verification of a stage of 10,000 shards.

    python -m benchmarks.commit [--shards 10000] [--runs 5]

The limit: 5 % of a run whose shards take 1 s each on 100 workers, so 5 s of 100 s. The workers are left out: real
fragments are staged beforehand by the real worker, and their results are handed to the driver at once. All else is
the real thing: planner, ledger, store, on the local disk. Beside the real limit there is one measured in the same
run: the time of as many bare puts (temporary file, fsync, link), the least that one document per shard can cost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.graphs import Bench, Numbers, Plus1
from benchmarks.measure import machine, row
from infra.folder_bucket import LocalBucket
from infra.ledger import Folder
from infra.store import Store
from pipelines import rows, shards
from pipelines.graph import Placement

ROWS_PER_SHARD = 64
SHARD_S = 1.0
NUM_WORKERS = 100
SHARE = 0.05


class Prestaged:
    """In place of the pool: the first materialisation of a dataset is really staged, the later ones are handed out."""

    def __init__(self) -> None:
        self.results: dict[str, dict[int, dict[str, Any]]] = {}

    def map(
        self,
        token: str,
        worker: Any,
        todo: Iterable[tuple[int, Sequence[Any]]],
        on_shard: Callable[[int, list[dict[str, Any]]], None],
    ) -> list[str]:
        """As `Pool.map`."""
        name = worker.stage.writes
        if name not in self.results:
            self.results[name] = self._stage(worker, todo)
        for number, result in self.results[name].items():
            on_shard(number, [result])
        return []

    @staticmethod
    def _stage(worker: Any, todo: Iterable[tuple[int, Sequence[Any]]]) -> dict[int, dict[str, Any]]:
        worker.setup()
        found = {}
        for number, units in todo:
            loaded = worker.load(units)
            found[number] = worker.finish(units, loaded, worker.process(loaded))
        worker.close()
        return found

    def close(self) -> None:
        """Nothing to give back."""


class Clock:
    """Adds up the seconds of chosen functions, each without those of the others inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._replaced: list[tuple[Any, str, Any]] = []

    def watch(self, owner: Any, name: str, step: str) -> None:
        """Count a function of a module or class under a step."""
        called = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return called(*given, **named)
            finally:
                took = time.perf_counter() - started
                self.seconds[step] += took - self._inner.pop()
                self._inner[-1] += took

        self._replaced.append((owner, name, called))
        setattr(owner, name, timed)

    def stop(self) -> None:
        """Put every function back as it was."""
        for owner, name, called in self._replaced:
            setattr(owner, name, called)


def watched() -> Clock:
    """A clock on every step of `pipelines/rows.py`, until its `stop`."""
    clock = Clock()
    clock.watch(shards, "make", "plan: make")
    clock.watch(shards, "read", "plan: read back")
    clock.watch(Folder, "put", "ledger: put documents")
    clock.watch(rows, "_check_budget", "error budget")
    clock.watch(Folder, "get", "ledger: read back")
    clock.watch(Store, "intact", "staged files are there")
    clock.watch(Store, "publish_full", "commit and verify files")
    clock.watch(Store, "snapshot", "read keys: unique, digest")
    clock.watch(rows, "_conserve", "count every unit")
    return clock


def bare_puts(folder: Path, num: int) -> float:
    """Seconds of the least that `num` documents cost."""
    bucket = LocalBucket(folder)
    started = time.perf_counter()
    for i in range(num):
        bucket.put_if_absent(f"puts/{i}", b"x" * 900)
    return time.perf_counter() - started


def measure(folder: Path, num_shards: int, runs: int) -> tuple[dict[str, list[float]], list[float], list[float]]:
    """Seconds by step, of the whole, and of the bare puts."""
    bench = Bench(folder / "bench", lambda: None, Placement(shard_rows=ROWS_PER_SHARD), pool=Prestaged())
    bench.sources(1)
    numbers = Numbers(num_rows=num_shards * ROWS_PER_SHARD)
    bench.run(numbers, Plus1(again=-1))
    steps: dict[str, list[float]] = defaultdict(list)
    wholes: list[float] = []
    puts: list[float] = []
    clock = watched()
    for again in range(runs):
        clock.seconds.clear()
        started = time.perf_counter()
        made: Any = bench.run(numbers, Plus1(again=again)).stages[-1]
        wholes.append(time.perf_counter() - started)
        assert made["rows_out"] == num_shards * ROWS_PER_SHARD and made["state"] == "done", made
        for step, seconds in clock.seconds.items():
            steps[step].append(seconds)
        puts.append(bare_puts(folder / f"bare{again}", num_shards))
    clock.stop()
    return steps, wholes, puts


def main() -> None:
    """Print the seconds of each step, the whole, and its share of the run."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shards", type=int, default=10_000)
    arguments.add_argument("--runs", type=int, default=5)
    given = arguments.parse_args()
    print(machine("pylance"), flush=True)
    with tempfile.TemporaryDirectory(prefix="plait-bench-") as folder:
        steps, wholes, puts = measure(Path(folder), given.shards, given.runs)
    for step, seconds in steps.items():
        print(row(step, seconds, "s"))
    print(row("all that the driver does", wholes, "s"))
    print(row("bare puts, as many", puts, "s"))
    print(row("the driver over the bare puts", wholes, "s", puts))
    run_s = given.shards * SHARD_S / NUM_WORKERS
    share = statistics.median(wholes) / run_s
    verdict = "met" if share <= SHARE else "missed"
    print(f"{share:.1%} of a run of {run_s:.0f} s ({NUM_WORKERS} workers, {SHARD_S:.0f} s a shard):", end=" ")
    print(f"{SHARE:.0%} is {verdict}; load after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
