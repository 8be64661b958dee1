"""What the video benchmarks share: films, and the times of contestants that take turns."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

SHARED = Path(os.environ.get("PLAIT_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data") / "videos"
FILMS = (
    "bikes.mp4",
    "dj_video1.mp4",
    "dj_video2.mp4",
    "toy_frog.webm",
    "flower.mp4",
    "bbb_0_30.webm",
    "pattern_hd.mp4",
)
"""640 x 272 to 1920 x 1080, H.264, VP8 and VP9."""


@dataclass(frozen=True)
class Times:
    """One contestant's turns, s: by the clock, and of processors (its own and its children's)."""

    wall_s: list[float]
    cpu_s: list[float]

    def line(self, name: str) -> str:
        """Medians, and the least and most by the clock."""
        wall, cpu = statistics.median(self.wall_s), statistics.median(self.cpu_s)
        return f"{name:34} {wall:8.3f} s ({min(self.wall_s):.3f} to {max(self.wall_s):.3f})   cpu {cpu:7.3f} s"

    def less(self, start: Times) -> Times:
        """These times without those of a start, turn by turn."""
        wall = [a - b for a, b in zip(self.wall_s, start.wall_s, strict=True)]
        return Times(wall, [a - b for a, b in zip(self.cpu_s, start.cpu_s, strict=True)])


def ratio(slow: Times, fast: Times) -> str:
    """How many times faster, by the clock and by processors: median of the turns' ratios."""
    wall = statistics.median(a / b for a, b in zip(slow.wall_s, fast.wall_s, strict=True))
    cpu = statistics.median(a / b for a, b in zip(slow.cpu_s, fast.cpu_s, strict=True))
    return f"{wall:.2f} by the clock, {cpu:.2f} by processors"


def taking_turns(contestants: dict[str, Callable[[], object]], runs: int) -> dict[str, Times]:
    """Each once to warm up, then `runs` rounds in which each has a turn: what else the machine does meets all."""
    for contestant in contestants.values():
        contestant()
    times = {name: Times([], []) for name in contestants}
    for _ in range(runs):
        for name, contestant in contestants.items():
            wall, cpu = time.perf_counter(), _cpu_s()
            contestant()
            times[name].wall_s.append(time.perf_counter() - wall)
            times[name].cpu_s.append(_cpu_s() - cpu)
    return times


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def asked(manual: str) -> argparse.Namespace:
    """The command line of a benchmark: films and runs. Prints the machine and the versions."""
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="*", type=Path, help=f"default: {', '.join(FILMS)} of the shared data")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    given.films = given.films or [SHARED / name for name in FILMS]
    missing = [str(path) for path in given.films if not path.is_file()]
    if missing:
        parser.error(f"{missing[0]} is not there: name films, or set PLAIT_SHARED_DATA.")
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    print(
        f"{os.cpu_count()} cores of {model}, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, ",
        end="",
    )
    libraries = ("av", "opencv-python-headless", "scenedetect-headless")
    print(", ".join(f"{name} {metadata.version(name)}" for name in libraries))
    return given


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
