"""Planning: which of N wanted keys are new against N keys at the base. Peer: a set of Python bytes, same run.

    python -m benchmarks.planning [--rows 10000000] [--runs 5]

Prints the median of the runs, the peak memory of the process, and the ratio to the peer; at a tenth, three tenths and
all of the rows, so that linearity shows. The limits at 10^7: 20 s and 3 GB. The peer runs at the smallest size only
(it needs 100 bytes a key). What 10^10 rows cost on paper: docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time

import numpy as np
import pyarrow as pa

from benchmarks.measure import machine
from infra.digests import digest_of
from infra.types import Snapshot
from pipelines import rest
from pipelines.units import Base, compare


def keys(num: int, seed: int) -> pa.Array:
    """Uniform 16-byte keys, as hashes are."""
    data = np.random.default_rng(seed).bytes(16 * num)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), num, [None, pa.py_buffer(data)])


def plan(wanted: pa.Array, base: Base) -> int:
    """What the planner does for one stage: digest of the wanted units, then the comparison of parents."""
    digest_of(wanted)
    return len(compare(wanted, base).compute)


def peer(wanted: pa.Array, have: pa.Array) -> int:
    """The same anti-join by Python's own hash set."""
    known = set(have.to_pylist())
    return sum(key not in known for key in wanted.to_pylist())


def measure(num: int, runs: int, with_peer: bool) -> float:
    """One size: 99 % of the wanted keys are known. Returns the median seconds."""
    have = keys(num, 1)
    new = keys(num // 100, 2)
    wanted = pa.concat_arrays([have.slice(num // 100), new])
    base = Base(Snapshot("d", "", 1, "", num), {}, have, rest.EMPTY)
    ours, theirs, cpu = [], [], []
    for _ in range(runs):
        started, used = time.perf_counter(), time.process_time()
        found = plan(wanted, base)
        ours.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
        assert found == num // 100
        if with_peer:
            started = time.perf_counter()
            assert peer(wanted, have) == found
            theirs.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ours_s = statistics.median(ours)
    line = f"{num:>11,} keys  plait {ours_s:6.2f} s  ({min(ours):.2f}..{max(ours):.2f})"
    line += f"  CPU {statistics.median(cpu):.2f} s  peak {peak:.2f} GB"
    if theirs:
        theirs_s = statistics.median(theirs)
        line += f"  python set {theirs_s:6.2f} s  ratio {ours_s / theirs_s:.2f}"
    print(line, flush=True)
    return ours_s


def main() -> None:
    """Three sizes, and what a key costs at each of them over the smallest."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--runs", type=int, default=5)
    given = arguments.parse_args()
    print(machine("pyarrow", "numpy"), flush=True)
    sizes = [given.rows // 10, 3 * given.rows // 10, given.rows]
    seconds = [measure(num, given.runs, with_peer=num == sizes[0]) for num in sizes]
    growth = [seconds[i] / sizes[i] / (seconds[0] / sizes[0]) for i in range(len(sizes))]
    print(f"seconds a key, over those at the smallest size: {', '.join(f'{g:.2f}' for g in growth)} (1: linear)")
    print(f"load after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
