"""W1: what one more no-op task costs in a graph of three stages. Peer: nemo-curator 1.4.0 on Ray Data, 2 CPUs.

    python -m benchmarks.orchestration [--peer-python /tmp/venv-peer/bin/python] [--runs 5]

The figure is the slope: (seconds of the largest size - seconds of the smallest) / (tasks between them).

A task is the unit that is retried, put into quarantine and resumed alone. For Curator that is its Task; for plait it
is a row (shards are only how rows travel). The harshest reading, every shard a single row, is printed as well: then
each row has its own Ray task, its own file and its own document in the ledger.

For plait a row costs so little that 300 to 5,000 rows differ by less than the noise, so its slope is taken up to
50,000 rows; Curator's is taken between the sizes of W1, of which 5,000 takes minutes.

The peer's venv (torch first, so that no CUDA build is pulled in):

    python3.11 -m venv /tmp/venv-peer
    /tmp/venv-peer/bin/pip install torch==2.13.0 "ray[data]==2.60.0"
    /tmp/venv-peer/bin/pip install nemo-curator==1.4.0 torch==2.13.0 "ray[data]==2.60.0"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.graphs import Bench, Numbers, Plus1, Plus2, Plus3, private_ray
from benchmarks.measure import machine, row
from pipelines.graph import Placement

SIZES = (300, 1500, 5000)
OUR_SIZES = (*SIZES, 50_000)
HARSH_SIZES = (100, 500)
PEER_LIMIT_S = 400.0


def plait_seconds(num_rows: int, placement: Placement) -> float:
    """One source, then three stages, from an empty root; Ray has started, the actors have not."""
    folder = Path(tempfile.mkdtemp(prefix="plait-bench-"))
    try:
        bench = Bench(folder / "bench", private_ray, placement)
        bench.sources(1)
        started = time.perf_counter()
        made: Any = bench.run(Numbers(num_rows=num_rows), Plus1(), Plus2(), Plus3()).stages[-1]
        seconds = time.perf_counter() - started
        assert made["rows_out"] == num_rows, made
        return seconds
    finally:
        shutil.rmtree(folder)


def peer_seconds(python: str) -> dict[int, float]:
    """Curator's seconds by size, measured by its own process."""
    script = Path(__file__).with_name("curator_noop.py")
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    command = [python, str(script), *map(str, SIZES)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=PEER_LIMIT_S, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {int(size): seconds for size, seconds in found["seconds"].items()}


def slope_ms(seconds: dict[int, float]) -> float:
    """Milliseconds for one more task."""
    low, high = min(seconds), max(seconds)
    return (seconds[high] - seconds[low]) / (high - low) * 1000


def main() -> None:
    """Print the slope of each, and the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peer-python", default="/tmp/venv-peer/bin/python")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--limit-s", type=float, default=1800.0, help="no new round after this many seconds")
    given = arguments.parse_args()
    has_peer = Path(given.peer_python).is_file()
    print(machine("ray", "pylance"), flush=True)
    private_ray()
    plait_seconds(10, Placement())
    found: dict[str, list[dict[int, float]]] = {"rows": [], "shards": [], "peer": []}
    slopes: dict[str, list[float]] = {}
    give_up = time.monotonic() + given.limit_s
    for number in range(given.runs):
        if time.monotonic() > give_up:
            print(f"stopped after {number} rounds of {given.runs}: --limit-s={given.limit_s:.0f}")
            break
        found["rows"].append({size: plait_seconds(size, Placement()) for size in OUR_SIZES})
        found["shards"].append({n: plait_seconds(n, Placement(shard_rows=1, batch_rows=1)) for n in HARSH_SIZES})
        if has_peer:
            found["peer"].append(peer_seconds(given.peer_python))
        slopes = {name: [slope_ms(r) for r in rounds] for name, rounds in found.items()}
        so_far = ", ".join(f"{name} {values[-1]:.2f}" for name, values in slopes.items() if values)
        print(f"round {number + 1}: {so_far} ms/task, load {os.getloadavg()[0]:.1f}", flush=True)
    for name, rounds in found.items():
        for size in rounds[0] if rounds else ():
            print(row(f"{name}, {size} tasks", [r[size] for r in rounds], "s"))
    print(row("plait, a row", slopes["rows"], "ms/task", slopes["peer"]))
    print(row("plait, a shard of a single row", slopes["shards"], "ms/task", slopes["peer"]))
    if has_peer:
        print(row("nemo-curator on Ray Data", slopes["peer"], "ms/task"))
    else:
        print(f"nemo-curator is not measured: there is no {given.peer_python} (this file says how to make it)")
    print(f"load after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
