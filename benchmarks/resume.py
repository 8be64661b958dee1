"""W3: kill -9 the driver at half of the rows, run the same command again. Peer: Ray Data's CheckpointConfig.

    python -m benchmarks.resume [--runs 5]

Counted are calls of the row function by both runs together, so calls - rows = rows that were computed again; and the
rows that stand twice in the output. Both read the same rows in pieces of 16 (plait: shards, Ray Data: files and
blocks), two at a time; a row takes 10 ms. In flight at any moment: two pieces, 32 rows.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.graphs import MARKS, REPO, Bench, Numbers, Slow, private_ray, slow_step
from benchmarks.measure import machine, row
from infra.store import Store
from pipelines.graph import Placement

NUM_ROWS = 640
PIECE = 16
LIMIT_S = 120.0


def bench_in(folder: Path) -> Bench:
    """The same root for the run that dies and the one that goes on."""
    return Bench(folder / "bench", private_ray, Placement(workers=2, shard_rows=PIECE, batch_rows=1))


def drive_plait(folder: Path) -> None:
    """The driver that is killed, and then the one that resumes."""
    bench_in(folder).run(Numbers(num_rows=NUM_ROWS), Slow())


def drive_ray_data(folder: Path) -> None:
    """The same by Ray Data with its checkpoint."""
    private_ray()
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    path = str(folder / "checkpoint")
    context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=path, delete_checkpoint_on_success=False)  # fmt: skip  # noqa: E501
    context.use_datasource_v2 = False  # which puts small files together: then nothing is written before the end
    data = ray.data.read_parquet(str(folder / "parquet"), override_num_blocks=NUM_ROWS // PIECE)
    data.map(lambda row: {"id": row["id"], "x": slow_step(row["x"])}).write_parquet(str(folder / "out"))


def prepare(folder: Path) -> None:
    """The rows, for both."""
    bench = bench_in(folder)
    bench.sources(1)
    bench.run(Numbers(num_rows=NUM_ROWS))
    (folder / "parquet").mkdir()
    for start in range(0, NUM_ROWS, PIECE):
        numbers = list(range(start, start + PIECE))
        pq.write_table(pa.table({"id": numbers, "x": numbers}), folder / "parquet" / f"{start}.parquet")


def output(folder: Path, name: str) -> list[int]:
    """What stands in the output."""
    if name == "plait":
        bench = bench_in(folder)
        return Store(bench.root).scan(bench.snapshot("slow"), ["x"])["x"].to_pylist()
    return [x for file in (folder / "out").glob("*.parquet") for x in pq.read_table(file)["x"].to_pylist()]


def start(name: str, folder: Path, marks: Path) -> subprocess.Popen[bytes]:
    """A driver of its own, with a private Ray."""
    given = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    given |= {"PYTHONPATH": str(REPO), MARKS: str(marks)}
    command = [sys.executable, "-m", "benchmarks.resume", "--drive", name, "--folder", str(folder)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=given, cwd=REPO, stdout=quiet, stderr=quiet)


def settled(marks: Path) -> None:
    """Wait until the actors of a killed driver are gone too: nothing was counted for two seconds."""
    size = -1
    while marks.stat().st_size != size:
        size = marks.stat().st_size
        time.sleep(2)


def killed_and_resumed(name: str) -> tuple[float, float, float]:
    """Rows computed again, rows that stand twice, seconds of the second run."""
    with tempfile.TemporaryDirectory(prefix="plait-bench-") as text:
        folder, marks = Path(text), Path(text, "marks")
        marks.touch()
        prepare(folder)
        driver = start(name, folder, marks)
        give_up = time.monotonic() + LIMIT_S
        while marks.stat().st_size < NUM_ROWS // 2 and driver.poll() is None and time.monotonic() < give_up:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, f"{name} ended before it could be killed"
        settled(marks)
        started = time.perf_counter()
        assert start(name, folder, marks).wait(LIMIT_S) == 0, f"{name} did not resume"
        seconds = time.perf_counter() - started
        found = output(folder, name)
        assert set(found) == set(range(1, NUM_ROWS + 1)), f"{name} lost {NUM_ROWS - len(set(found))} rows"
        return marks.stat().st_size - NUM_ROWS, len(found) - len(set(found)), seconds


def main() -> None:
    """Print what each computed again, and the rows that stand twice."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--drive", choices=("plait", "ray_data"))
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.drive:
        return (drive_plait if given.drive == "plait" else drive_ray_data)(given.folder)
    print(machine("ray", "pylance", "pyarrow"), flush=True)
    found: dict[str, list[tuple[float, float, float]]] = {"plait": [], "ray_data": []}
    for _ in range(given.runs):
        for name, figures in found.items():
            figures.append(killed_and_resumed(name))
    print(f"{NUM_ROWS} rows, at most {2 * PIECE} in flight")
    for place, what, unit in ((0, "computed again", "rows"), (1, "standing twice", "rows"), (2, "second run", "s")):
        for name, figures in found.items():
            print(row(f"{name}: {what}", [f[place] for f in figures], unit))
    print(f"load after {os.getloadavg()[0]:.1f}")
    return None


if __name__ == "__main__":
    main()
