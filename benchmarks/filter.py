"""W8: scoring clips with all scorers in one decode, against each scorer in a pass of its own.

    python benchmarks/filter.py [--data ../shared/data] [--clips 7] [--repeat 3] [--juicer DIR/bin/python]

Prints ratios, medians of runs in turn on one core of OpenCV and ONNX, of seconds of processor:
    all / (slowest scorer alone + one decode)      wanted at most 1.3
    separate passes / all, our own scorers         wanted at least 3
    the same, without the text detector            what sharing the decode gives to the cheap ones
    Data-Juicer's passes / all                     wanted at least 3
    Data-Juicer's passes without text / ours without text
A pass of one scorer decodes the clip at the rate that it needs, as Data-Juicer's filters do. `--juicer` names a Python
with py-data-juicer 1.6.1 (opencv-contrib-python, av 13.1 and aiohttp beside it): its filters of motion, duration,
resolution and aspect then run themselves, on the same clips as files; without it, its motion is its loop over OpenCV
written again. Its text filter cannot be run (EasyOCR's weights are on github.com): in its place our detector looks at
its three whole frames.

Met is the first target, and against Data-Juicer without the text filter of both. Our separate passes cannot reach 3:
looking for text, at 40 ms a picture of 256 pixels and 2 pictures a second, is three quarters of everything, and is
shared by nothing. Data-Juicer looks at three pictures a clip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stages import media
from stages.clip import Clips
from stages.filter import colour, fingerprint, flow, quality, text_area
from stages.filter.score import Scores
from stages.probe import probe

NAMES = ("bikes.mp4", "stream.mp4", "nasa_13013.mp4", "countdown.mp4", "chaplin.mp4", "toy_rabbit.webm", "counter.mp4")
LOOK, MOVE, SIDE = 2.0, 8.0, text_area.SHORT_SIDE


class Local:
    """A raw file where it lies."""

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, path.name

    def local(self):
        """As the engine gives it."""
        from contextlib import nullcontext

        return nullcontext(self.path)


def clips_of(folder: Path, count: int) -> list[dict]:
    """The first clip of each of so many videos, as the clip stage makes them."""
    found: list[dict] = []
    for name in NAMES[:count]:
        path = folder / "videos" / name
        row = {"digest": "0" * 16, "label": name, "dataset": "videos", "raw": Local(path), **probe(path)}
        found += Clips().process([row], None)[0][:1]
    return found


def looked(clip: dict, rate: float):
    """Pictures of a clip at a rate."""
    return media.sampled(clip["media"], clip["source_kind"], rate, SIDE)


def passes(detect) -> dict[str, Callable[[dict], None]]:
    """Each scorer alone, with its own decode."""

    def per_picture(measure: Callable) -> Callable[[dict], None]:
        def run(clip: dict) -> None:
            for _, picture in looked(clip, LOOK):
                measure(picture)

        return run

    def moved(clip: dict) -> None:
        motion = flow.Flow()
        for at, picture in looked(clip, MOVE):
            motion.add(at, picture)
        motion.score()

    return {
        "text": per_picture(lambda picture: text_area.text_area(detect, picture)),
        "flow": moved,
        "solid colour": per_picture(colour.solid_colour),
        "flat colours": per_picture(colour.flat_colours),
        "quality": per_picture(quality.quality),
        "fingerprint": per_picture(fingerprint.fingerprint),
    }


def juiced(detect) -> dict[str, Callable[[dict], None]]:
    """Motion and text as Data-Juicer does them, each with its own decode of whole frames."""
    import cv2

    def motion(clip: dict) -> None:
        before = None
        for _, picture in media.sampled(clip["media"], clip["source_kind"], 2.0, 100_000):
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            if before is not None:
                cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            before = grey

    def text(clip: dict) -> None:
        for picture in media.evenly(clip["media"], clip["source_kind"], clip["num_frames"], 3, 100_000):
            text_area.text_area(detect, picture)

    return {"juicer motion": motion, "juicer text": text}


class Juicer:
    """Data-Juicer's filters in their own Python, asked once a turn."""

    def __init__(self, python: str, clips: list[dict], folder: Path) -> None:
        self.paths = [str(folder / f"{number}.mp4") for number in range(len(clips))]
        for path, clip in zip(self.paths, clips, strict=True):
            Path(path).write_bytes(clip["media"])
        script = str(Path(__file__).with_name("filter_juicer.py"))
        self.process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turn(self.paths[:1])

    def turn(self, paths: list[str] | None = None) -> dict[str, float]:
        """Seconds of processor by filter."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(paths or self.paths) + "\n")
        self.process.stdin.flush()
        return {f"juicer {name}": took for name, took in json.loads(self.process.stdout.readline()).items()}

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=60)


def timed(work: Callable[[dict], object], clips: list[dict]) -> float:
    """Seconds of CPU of this process: the machine may be shared."""
    start = time.process_time()
    for clip in clips:
        work(clip)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--clips", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--juicer", help="a Python that has py-data-juicer")
    given = parser.parse_args()
    clips = clips_of(given.data, given.clips)
    stage = Scores()
    tools = stage.setup(None)  # type: ignore[arg-type]
    works: dict[str, Callable] = {
        "decode": lambda clip: [None for _ in looked(clip, MOVE)],
        **passes(tools[0]),
        **{name: work for name, work in juiced(tools[0]).items() if name == "juicer text" or not given.juicer},
        "all": lambda clip: stage.process([clip], tools),
    }
    works["all"](clips[0])
    times: dict[str, list[float]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as folder:
        juicer = Juicer(given.juicer, clips, Path(folder)) if given.juicer else None
        for _ in range(given.repeat):
            turn = {name: timed(work, clips) for name, work in works.items()}
            turn |= juicer.turn() if juicer else {}
            for name, seconds in turn.items():
                times.setdefault(name, []).append(seconds)
        if juicer:
            juicer.close()
    took = {name: statistics.median(runs) for name, runs in times.items()}
    for name, seconds in took.items():
        spread = max(times[name]) - min(times[name])
        print(f"{name:14} {1000 * seconds / len(clips):8.1f} ms a clip  (spread {1000 * spread / len(clips):.1f})")
    alone = {name: took[name] for name in passes(tools[0])}
    slowest = max(alone, key=lambda name: alone[name])
    cheap = sum(alone.values()) - alone["text"]
    shared = took["all"] - (alone["text"] - took["decode"])
    print(f"slowest scorer alone: {slowest}")
    print(
        f"all / (slowest + one decode)            {took['all'] / (alone[slowest] + took['decode']):.2f}   wanted <= 1.3"
    )
    print(f"separate passes / all                   {sum(alone.values()) / took['all']:.2f}   wanted >= 3")
    print(f"separate passes / all, without text     {cheap / shared:.2f}")
    theirs = sum(seconds for name, seconds in took.items() if name.startswith("juicer "))
    print(f"Data-Juicer's passes / all              {theirs / took['all']:.2f}   wanted >= 3")
    print(f"the same, both without text             {(theirs - took['juicer text']) / shared:.2f}")


if __name__ == "__main__":
    main()
