"""Clips cut per second: against one ffmpeg process a clip (W7; target 3 times).

    python benchmarks/video_clips.py [FILM ...] [--runs 5] [--ffmpeg PATH]

Clips of 2 seconds. The ffmpeg is the system's, `--ffmpeg`, or that of the package imageio-ffmpeg. Two peers: with
plait's own x264 settings, and as Panda-70M calls it (`-ss START -t LENGTH -i FILM`, ffmpeg's default settings).

The limit with equal settings: x264, the same in both, takes 89 to 97 % of plait's time (printed at the end); what
ffmpeg pays beside it, and plait does not, is the start of a process and the way from the last key frame, once a clip.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.video_measure import Times, asked, ratio, taking_turns
from stages import media, mp4
from stages.clip import Clips, _parts
from stages.probe import probe

Films = list[tuple[Path, dict[str, Any], list[tuple[int, int]]]]


def ffmpeg() -> str:
    """The ffmpeg to race against."""
    if "--ffmpeg" in sys.argv:
        at = sys.argv.index("--ffmpeg")
        del sys.argv[at]
        return sys.argv.pop(at)
    found = shutil.which("ffmpeg")
    if not found:
        try:
            found = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        except ImportError:
            sys.exit("There is no ffmpeg: pip install imageio-ffmpeg, or name one by --ffmpeg PATH.")
    return str(found)


def ours(films: Films) -> int:
    """The second half of the stage: one decode of each film, an encoder a clip."""
    return sum(1 for path, row, ranges in films for _ in Clips()._written(row, path, ranges))


def theirs(films: Films, binary: str, settings: list[str]) -> int:
    """A process a clip, into files."""
    with tempfile.TemporaryDirectory() as folder:
        for path, row, ranges in films:
            for start, end in ranges:
                times = ["-ss", str(start / row["fps"]), "-t", str((end - start) / row["fps"])]
                out = [*settings, "-an", str(Path(folder) / "clip.mp4")]
                subprocess.run([binary, "-loglevel", "panic", "-y", *times, "-i", str(path), *out], check=True)
    return sum(len(ranges) for _, _, ranges in films)


def parts_of(films: Films) -> dict[str, float]:
    """The shares of `ours` by the clock: in x264, waiting for the decoder, the rest."""
    spent = {"x264": 0.0, "decoder": 0.0}

    def timed(name: str, call: Any) -> Any:
        def wrapped(*given: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*given)
            finally:
                spent[name] += time.perf_counter() - started

        return wrapped

    def frames(film: media.Film) -> Iterator[Any]:
        advance = timed("decoder", lambda: next(stream, None))
        stream = plain(film)
        while (frame := advance()) is not None:
            yield frame

    plain = media.Film.frames
    started = time.perf_counter()
    with (
        mock.patch.object(media.Film, "frames", frames),
        mock.patch.object(mp4.Mp4, "add", timed("x264", mp4.Mp4.add)),
        mock.patch.object(mp4.Mp4, "finished", timed("x264", mp4.Mp4.finished)),
    ):
        ours(films)
    whole = time.perf_counter() - started
    return {name: each / whole for name, each in spent.items()}


def main() -> None:
    """Each film, then all together."""
    binary = ffmpeg()
    given = asked(__doc__ or "")
    print(subprocess.run([binary, "-version"], check=True, capture_output=True).stdout.decode().splitlines()[0])
    films: Films = []
    for path in given.films:
        row = {**probe(path), "digest": "00" * 32, "label": path.name}
        films.append((path, row, _parts([0, row["num_frames"]], 2 * row["fps"])))
    alike = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-bf", "0", "-x264-params", "mbtree=0"]

    def race(chosen: Films) -> dict[str, Times]:
        contestants = {
            "plait": lambda: ours(chosen),
            "ffmpeg, plait's settings": lambda: theirs(chosen, binary, alike),
            "ffmpeg, as Panda-70M": lambda: theirs(chosen, binary, []),
        }
        return taking_turns(contestants, given.runs)

    for chosen in [[film] for film in films] + [films]:
        times = race(chosen)
        plait, same, panda = times.values()
        name = chosen[0][0].name if len(chosen) == 1 else "all"
        print(f"{name}: {sum(len(ranges) for _, _, ranges in chosen)} clips")
        print("\n".join(f"  {each.line(contestant)}" for contestant, each in times.items()))
        print(f"  times faster than with the same settings: {ratio(same, plait)}")
        print(f"  times faster than Panda-70M's call: {ratio(panda, plait)}")
    print("plait's time: " + ", ".join(f"{share:.0%} {part}" for part, share in parts_of(films).items()))


if __name__ == "__main__":
    main()
