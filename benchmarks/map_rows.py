"""A map of N rows (an int column plus one): plait against Ray Data on the same private Ray, 2 CPUs.

    python -m benchmarks.map_rows [--rows 1000000] [--runs 5] [--shard-rows 16384]

plait's stage API is Python per row, so Ray Data's `map` (a function of a row) is the like-for-like; `map_batches`
(a function of a NumPy batch) is printed beside it, since that is what its manual recommends.

Not the same work: plait commits a Lance version, names every row by a hash, notes its parent, reads the keys back,
counts every unit, and writes what it can resume from. Ray Data reads and writes one int column as Parquet.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.graphs import Bench, Numbers, Plus1, private_ray
from benchmarks.measure import in_turn, machine, row
from infra.store import Store
from infra.types import Snapshot
from pipelines.graph import Placement

NUM_FILES = 10
PLAIT = "plait, big shards"
DEFAULT = "plait, default placement"


def write_parquet(bench: Bench, snapshot: Snapshot, folder: Path) -> None:
    """The same rows for Ray Data: one int column in as many files as there were sources."""
    folder.mkdir()
    table = Store(bench.root).scan(snapshot, ["x"])
    step = -(-table.num_rows // NUM_FILES)
    for i in range(NUM_FILES):
        pq.write_table(table.slice(i * step, step), folder / f"{i}.parquet")


def check_parquet(folder: Path, num_rows: int) -> None:
    """Ray Data's output holds every row."""
    assert sum(pq.read_metadata(f).num_rows for f in folder.glob("*.parquet")) == num_rows


def ray_data(folder: Path, num_rows: int, batches: bool) -> None:
    """Read, map, write by Ray Data."""
    import ray.data

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    data = ray.data.read_parquet(str(folder / "parquet"))
    mapped = data.map_batches(lambda b: {"x": b["x"] + 1}) if batches else data.map(lambda r: {"x": r["x"] + 1})
    mapped.write_parquet(str(out))
    check_parquet(out, num_rows)


def measure(folder: Path, num_rows: int, runs: int, placement: Placement) -> dict[str, list[float]]:
    """Wall seconds of each contestant."""
    logging.disable(logging.INFO)  # Ray Data tells of each run
    ray = private_ray()
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    bench = Bench(folder / "bench", lambda: ray, placement)
    bench.sources(NUM_FILES)
    numbers = Numbers(num_rows=num_rows // NUM_FILES)
    bench.run(numbers)

    def plait(again: int, placed: Placement) -> None:
        bench.placement = placed
        made: Any = bench.run(numbers, Plus1(again=again)).stages[-1]
        assert made["rows_out"] == num_rows and made["state"] == "done", made

    write_parquet(bench, bench.snapshot("numbers"), folder / "parquet")
    contestants = {
        PLAIT: lambda number: plait(number, placement),
        DEFAULT: lambda number: plait(-1 - number, Placement(workers=2)),
        "Ray Data map": lambda _: ray_data(folder, num_rows, batches=False),
        "Ray Data map_batches": lambda _: ray_data(folder, num_rows, batches=True),
    }
    return in_turn(contestants, runs)


def main() -> None:
    """Print rows per second, and the ratio to each form of Ray Data."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--shard-rows", type=int, default=16_384, help="units per shard, and per call of process")
    given = arguments.parse_args()
    placement = Placement(workers=2, shard_rows=given.shard_rows, batch_rows=given.shard_rows)
    print(machine("ray", "pylance", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="plait-bench-") as folder:
        seconds = measure(Path(folder), given.rows, given.runs, placement)
    rates = {name: [given.rows / s for s in found] for name, found in seconds.items()}
    print(row(PLAIT, rates[PLAIT], "rows/s"))
    print(row(DEFAULT, rates[DEFAULT], "rows/s"))
    for name in ("Ray Data map", "Ray Data map_batches"):
        print(row(name, rates[name], "rows/s"))
        print(row(f"    plait over {name}", rates[PLAIT], "rows/s", rates[name]))
        print(row(f"    default placement over {name}", rates[DEFAULT], "rows/s", rates[name]))
    print(f"load after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
