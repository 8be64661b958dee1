"""Runs the media stages over a folder of spoilt files, in a process of its own: a crash of a decoder ends only it.

    python -m tests.stages.fuzz_worker FOLDER OUT [START]

OUT gets one JSON line before each file and one after it, so that whoever watches knows which file was the last.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import frames, media
from stages.base import BadRow
from stages.clip import Clips
from stages.filter.flow import Flow
from stages.ingest import Images, Videos
from tests.stages.conftest import raw_row

MEMORY_BYTES = 3 << 30
"""Address space of the process: libraries and threads take about 1.5 GB of it, what a file asks for must fit beside."""


def outcome(path: Path) -> dict[str, Any]:
    """What became of a file: the number of its frames and clips, or the reason why it has none."""
    kind = "images" if path.suffix in (".jpg", ".png", ".webp", ".tif") else "videos"
    (found,) = (Images() if kind == "images" else Videos()).process([raw_row(path)], None)
    if isinstance(found, BadRow):
        return {"reason": str(found)}
    row = raw_row(path, kind, **{name: value for name, value in found[0].items() if name != "digest"})
    (clips,) = Clips(preset="ultrafast", max_clip_s=0.5).process([row], None)
    if isinstance(clips, BadRow):
        return {"reason": str(clips)}
    for clip in clips[:2]:
        read_as_later_stages_do(clip)
    told = 1 if kind == "images" else row["num_frames"]
    return {"frames": told, "clips": len(clips), "clip_frames": sum(clip["num_frames"] for clip in clips)}


def read_as_later_stages_do(clip: dict[str, Any]) -> None:
    """Scores, captions and the tokenizer read the clip that was written."""
    motion = Flow()
    for moment, picture in media.sampled(clip["media"], clip["source_kind"], 8.0, 128):
        motion.add(moment, picture)
    assert media.evenly(clip["media"], clip["source_kind"], clip["num_frames"], 8, 64)
    assert frames.prepare(
        clip["media"], clip["source_kind"], clip["num_frames"], clip["fps"], frames.View(size=32, frames=4)
    ).pictures.shape[1:] == (32, 32, 3)


def reports(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Two a file: that it begins, and how it ended."""
    for path in paths:
        yield {"begins": path.name}
        started = time.monotonic()
        try:
            ended = outcome(path)
        except Exception as error:  # noqa: BLE001 - to be told, file by file: the test fails on it
            ended = {"raised": f"{type(error).__name__}: {error}"}
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        yield {"file": path.name, "took_s": time.monotonic() - started, "peak_bytes": peak_bytes, **ended}


def main() -> None:
    """Every file of the folder, by name."""
    import cv2

    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, out, first = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
    with out.open("a") as log:
        for report in reports([path for path in sorted(folder.iterdir()) if path.name > first]):
            log.write(json.dumps(report) + "\n")
            log.flush()


if __name__ == "__main__":
    main()
