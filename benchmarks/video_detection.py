"""Finding cuts: against decoding alone (target 0.7 of its rate), and against `scenedetect` (target 2 times, W6).

    python benchmarks/video_detection.py [FILM ...] [--runs 5]

Raw decoding is PyAV's, frame by frame with as many threads as plait takes. `scenedetect` is its command line with the
same two detectors and its own settings, a process a film; a film of one frame tells what of that is its start. Its cuts
must be those of plait, but for fades next to a hard cut or to an end, which plait leaves out.

The limit: per frame the sampling costs 0.13 ms at 640 x 360, the detectors 0.04 ms, both nearly independent of the
picture's size. So the share is above 0.7 where decoding a frame costs over 0.4 ms of processor (640 x 360 H.264 and
larger), and below it for less: a 480 x 270 test pattern that decodes in 0.1 ms gives 0.4.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.video_measure import Times, asked, ratio, taking_turns
from stages import cuts, media


def raw(path: Path) -> int:
    """Frames, decoded and dropped."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = media.THREADS
        return sum(1 for _ in container.decode(stream))


def rate(path: Path) -> Fraction:
    """Frames a second as the header states them."""
    with media.opened(path) as film:
        return Fraction(film.stream.average_rate or 25)


def detect(path: Path, fps: Fraction) -> list[int]:
    """The stage's detection."""
    with media.opened(path) as film:
        seen = cuts.changes(film)
    return cuts.cuts(seen, fps, max(1, round(0.6 * fps)), 27.0, 12.0)


def theirs(path: Path) -> list[int]:
    """The command line of scenedetect: first frames of the scenes after the first."""
    script = "import sys; from scenedetect.__main__ import main; sys.exit(main())"
    with tempfile.TemporaryDirectory() as folder:
        command = ["-q", "-i", str(path), "-o", folder, "detect-content", "detect-threshold", "list-scenes", "-s", "-q"]
        subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True)
        (listed,) = Path(folder).glob("*.csv")
        with listed.open() as file:
            return [int(scene["Start Frame"]) - 1 for scene in csv.DictReader(file)][1:]


def one_frame(path: Path) -> None:
    """A film of one black frame: what is left of scenedetect is its start."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        output.mux(stream.encode(None))


def main() -> None:
    """Each film against decoding, all together, and all together against scenedetect."""
    given = asked(__doc__ or "")
    films = [(path, rate(path)) for path in given.films]

    def against_decoding(chosen: list[tuple[Path, Fraction]]) -> dict[str, Times]:
        contestants = {
            "PyAV decodes": lambda: [raw(path) for path, _ in chosen],
            "plait finds the cuts": lambda: [detect(path, fps) for path, fps in chosen],
        }
        return taking_turns(contestants, given.runs)

    print("\nShare of the rate of decoding alone")
    for film in films:
        times = against_decoding([film])
        print(f"  {film[0].name:24} {ratio(times['PyAV decodes'], times['plait finds the cuts'])}")
    times = against_decoding(films)
    print(f"  {'all':24} {ratio(times['PyAV decodes'], times['plait finds the cuts'])}")
    print("\n".join(f"  {each.line(name)}" for name, each in times.items()))

    print("\nAgainst the command line of scenedetect, a process a film")
    found: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "single.mp4"
        one_frame(single)
        contestants = {
            "scenedetect": lambda: found.update(theirs=[theirs(path) for path, _ in films]),
            "scenedetect, on one frame each": lambda: [theirs(single) for _ in films],
            "plait, in the process of an actor": lambda: found.update(ours=[detect(path, fps) for path, fps in films]),
        }
        times = taking_turns(contestants, given.runs)
    print("\n".join(f"  {each.line(name)}" for name, each in times.items()))
    whole, start, plait = times.values()
    print(f"  times faster: {ratio(whole, plait)}")
    print(f"  times faster, without the starts of its processes: {ratio(whole.less(start), plait)}")
    for (path, _), their, our in zip(films, found["theirs"], found["ours"], strict=True):
        print(f"  {path.name:24} cuts {'equal' if their == our else f'differ: scenedetect {their}, plait {our}'}")


if __name__ == "__main__":
    main()
