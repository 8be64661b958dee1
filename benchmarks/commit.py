"""What the driver itself costs: plan, ledger, commit and verification of a stage of 10,000 shards.

    python -m benchmarks.commit [--shards 10000] [--runs 5]

The limit: 5 % of a run whose shards take 1 s each on 100 workers, so 5 s of 100 s. The workers are left out: real
fragments are staged (and merged) beforehand by the real workers, which also put the shards' documents; their results
are handed to the driver at once. All else is the real thing: planner, ledger, store, on the local disk. The measured
limit beside it: as many bare puts (temporary file, fsync, link), what one document per shard would cost the driver.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.graphs import Bench, Numbers, Plus1
from benchmarks.measure import machine, row
from infra import commits
from infra.blame import Task
from infra.folder_bucket import LocalBucket
from infra.lane import Todo, Watch
from infra.ledger import Folder
from infra.store import Store
from pipelines import rows, shards
from pipelines.graph import Placement

ROWS_PER_SHARD = 64
SHARD_S = 1.0
NUM_WORKERS = 100
SHARE = 0.05


class Prestaged:
    """In place of the fleet: the first materialisation of a dataset is really made, the later ones are handed out."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}

    def warm(self, share: Any, num_tasks: int, needs: object) -> None:
        """Nothing to start."""

    def map(self, worker: Any, todo: Todo, share: Any, watch: Watch) -> list[str]:
        """As `Fleet.map`."""
        kind = type(worker).__name__
        name = (kind, worker.stage.writes if kind == "ShardWorker" else worker.dataset)
        if name not in self.results:
            started = time.perf_counter()
            self.results[name] = self._stage(worker, todo)
            self.seconds[kind] = time.perf_counter() - started  # of the last dataset: the one that is measured
        for number, result in self.results[name].items():
            watch.on_shard(number, [dict(result)])
        return []

    @staticmethod
    def _stage(worker: Any, todo: Todo) -> dict[int, dict[str, Any]]:
        worker.setup()
        found = {}
        for number in todo.shards:
            units = todo.units(number)
            loaded = worker.load(units)
            found[number] = worker.finish(Task(number, tuple(units)), loaded, worker.process(loaded))
        worker.close()
        return found

    def release(self) -> None:
        """Nothing to give back."""

    def stop(self, why: BaseException) -> None:
        """Nothing works."""


class Clock:
    """Adds up the seconds of chosen functions, each without those of the others inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._of_thread = threading.local()
        self._replaced: list[tuple[Any, str, Any]] = []

    def watch(self, owner: Any, name: str, step: str) -> None:
        """Count a function of a module or class under a step."""
        called = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            inner = self._of_thread.__dict__.setdefault("inner", [0.0])
            inner.append(0.0)
            started = time.perf_counter()
            try:
                return called(*given, **named)
            finally:
                took = time.perf_counter() - started
                self.seconds[step] += took - inner.pop()
                inner[-1] += took

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
    clock.watch(Folder, "get", "ledger: read back")
    clock.watch(rows._Budget, "add", "error budget")
    clock.watch(Store, "missing", "staged files are there")
    clock.watch(rows, "merged", "groups to merge")
    clock.watch(commits, "publish_full", "commit and verify files")
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
    fleet = Prestaged()
    bench = Bench(folder / "bench", lambda: None, Placement(shard_rows=ROWS_PER_SHARD), fleet=fleet)
    bench.sources(1)
    numbers = Numbers(num_rows=num_shards * ROWS_PER_SHARD)
    bench.run(numbers, Plus1(again=-1))
    print(f"beforehand, in one process: {', '.join(f'{k} {s:.1f} s' for k, s in fleet.seconds.items())}", flush=True)
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
