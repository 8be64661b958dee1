"""Frames at one a second: against Daft's `read_video_frames` (W10; target: at least its rate).

    python benchmarks/video_sampling.py [FILM ...] [--runs 5]

Daft is asked in a virtual environment of its own (/tmp/venv-daft, or PLAIT_DAFT_PYTHON: `pip install daft av pillow`);
without it plait's time is all that is printed. Both give RGB pictures of the stored size from the same films, and
neither counts its start: Daft times itself, in a process that stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.video_measure import asked, ratio, taking_turns
from stages import media

DAFT = Path(os.environ.get("PLAIT_DAFT_PYTHON", "/tmp/venv-daft/bin/python"))
PEER = """
import json, sys
import daft
print(json.dumps(daft.__version__), flush=True)
for line in sys.stdin:
    films, height, width = json.loads(line)
    frames = 0
    for film in films:
        table = daft.read_video_frames(film, height, width, sample_interval_seconds=1.0).collect()
        frames += len(table)
    print(frames, flush=True)
"""


def size(path: Path) -> tuple[int, int]:
    """Width and height as stored."""
    with media.opened(path) as film:
        return film.stream.width, film.stream.height


def ours(films: list[Path]) -> int:
    """Pictures at one a second."""
    return sum(1 for path in films for _ in media.sampled(path.read_bytes(), "video", 1.0, 1 << 20))


def main() -> None:
    """Each film, then all together."""
    given = asked(__doc__ or "")
    if not DAFT.is_file():
        print(f"Daft is not at {DAFT}: python -m venv /tmp/venv-daft && /tmp/venv-daft/bin/pip install daft av pillow")
        print(taking_turns({"plait": lambda: ours(given.films)}, given.runs)["plait"].line("plait"))
        return
    with subprocess.Popen([DAFT, "-c", PEER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as peer:
        assert peer.stdin and peer.stdout
        print(f"daft {json.loads(peer.stdout.readline())}")
        counts: dict[str, int] = {}

        def theirs(films: list[Path]) -> int:
            assert peer.stdin and peer.stdout
            frames = 0
            for path in films:
                width, height = size(path)
                peer.stdin.write(json.dumps([[str(path)], height, width]) + "\n")
                peer.stdin.flush()
                frames += int(peer.stdout.readline())
            return frames

        for chosen in [[path] for path in given.films] + [given.films]:
            contestants = {
                "plait": lambda chosen=chosen: counts.update(plait=ours(chosen)),
                "daft": lambda chosen=chosen: counts.update(daft=theirs(chosen)),
            }
            times = taking_turns(contestants, given.runs)
            name = chosen[0].name if len(chosen) == 1 else "all"
            faster = ratio(times["daft"], times["plait"]).split(" by")[0]
            print(f"{name:24} frames {counts}; plait is {faster} times as fast by the clock")
        print("\n".join(each.line(name).split("   cpu")[0] for name, each in times.items()))
        peer.stdin.close()


if __name__ == "__main__":
    sys.exit(main())
