"""Spoilt files: no crash, no hang, no lost row, bounded memory, and a reason for each that gives nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

REPO = Path(__file__).parents[2]
NUM_FILES = 360
PATIENCE_S = 40.0
"""A file takes a tenth of a second; this is a hang, on a busy machine too."""
RESIDENT_BYTES = 2 << 30
"""Of the process over all files: decoders keep several pictures of up to 38 million pixels in flight."""
GOOD: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "yuv420p", {"g": "8", "x264-params": "log-level=none"}),
    "h264.mkv": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "6", "x264-params": "log-level=none"}),
    "h264.flv": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "deep.mp4": ("libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    "vp8.webm": ("libvpx", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    "av1.mkv": ("libsvtav1", "yuv420p", {"preset": "12"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "moving.gif": ("gif", "rgb8", {}),
}


def scenes() -> list[np.ndarray]:
    """24 frames of 96 x 64: two scenes of moving noise."""
    rng = np.random.default_rng(3)
    walls = [cv2.GaussianBlur(rng.random((64, 160, 3)).astype(np.float32), (0, 0), 2) for _ in range(2)]
    walls = [((wall - wall.min()) / np.ptp(wall) * 255).astype(np.uint8) for wall in walls]
    return [np.ascontiguousarray(walls[index // 12][:, index : index + 96]) for index in range(24)]


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """One small good file per container and codec that this build of PyAV writes, and four kinds of still."""
    pictures, files = scenes(), {}
    for name, (codec, pixels, options) in GOOD.items():
        if codec not in av.codecs_available:
            continue
        buffer = io.BytesIO()
        suffix = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}.get(name.split(".")[1], name.split(".")[1])
        with av.open(buffer, "w", format=suffix) as output:
            stream: Any = output.add_stream(codec, rate=24, options=options)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
            for picture in pictures:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            output.mux(stream.encode(None))
        files[name] = buffer.getvalue()
    for suffix in ("jpg", "png", "webp", "tif"):
        files[f"still.{suffix}"] = cv2.imencode(f".{suffix}", pictures[0])[1].tobytes()
    return files


def spoilt(rng: np.random.Generator, payload: bytes, other: bytes) -> bytes:
    """One of: bits flipped, bytes of the head changed, a cut, a hole, another file's piece or zeros, a repeat."""
    data, size = bytearray(payload), len(payload)
    at, until = sorted(int(place) for place in rng.integers(0, size, 2))
    match int(rng.integers(0, 8)):
        case 0 | 1:
            for place in rng.integers(0, size, int(2 ** rng.uniform(0, 7))):
                data[place] ^= 1 << int(rng.integers(0, 8))
        case 2 | 3:
            for place in rng.integers(0, min(size, 600), int(rng.integers(1, 6))):
                data[place] = int(rng.integers(0, 256))
        case 4:
            del data[at:]
        case 5:
            del data[at : min(until, at + size // 4)]
        case 6:
            data[at:until] = other[at:until] if rng.random() < 0.5 else bytes(until - at)
        case _:
            data[at:at] = data[at:until]
    return bytes(data)


def watched(folder: Path, out: Path) -> list[str]:
    """Run the worker over the folder, again after the file on which it died or hung; those files and how."""
    wrong, first = [], ""
    deadline = time.monotonic() + 280
    while True:
        command = [sys.executable, "-m", "tests.stages.fuzz_worker", str(folder), str(out), first]
        with subprocess.Popen(
            command, cwd=REPO, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(REPO)}
        ) as run:
            seen, since = -1, time.monotonic()
            while run.poll() is None:
                time.sleep(0.1)
                written = out.stat().st_size if out.exists() else 0
                if written != seen:
                    seen, since = written, time.monotonic()
                if time.monotonic() - since > PATIENCE_S or time.monotonic() > deadline:
                    run.kill()
            told = (run.stderr.read() if run.stderr else b"")[-500:].decode(errors="replace")
        if run.returncode == 0:
            return wrong
        first = json.loads(out.read_text().splitlines()[-1]).get("begins", "")
        wrong.append(f"{first or 'the start'}: ended with {run.returncode} {told}")
        if not first or len(wrong) > 5 or time.monotonic() > deadline:
            return wrong


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_no_spoilt_file_crashes_hangs_or_is_lost(good: dict[str, bytes], tmp_path: Path) -> None:
    rng = np.random.default_rng(int(os.environ.get("PLAIT_FUZZ_SEED", "0")))
    folder, names = tmp_path / "spoilt", sorted(good)
    folder.mkdir()
    for number in range(NUM_FILES):
        name = names[number % len(names)]
        other = good[names[int(rng.integers(0, len(names)))]]
        (folder / f"{number:03d}_{name}").write_bytes(spoilt(rng, good[name], other))
    out = tmp_path / "out.jsonl"
    assert watched(folder, out) == []
    ended = [told for told in map(json.loads, out.read_text().splitlines()) if "file" in told]
    assert len(ended) == NUM_FILES
    assert [told for told in ended if "raised" in told] == []
    assert all(told["reason"].endswith((".", ")")) for told in ended if "reason" in told)
    assert [told for told in ended if told.get("frames") != told.get("clip_frames")] == []
    assert max(told["peak_bytes"] for told in ended) < RESIDENT_BYTES
    assert max(told["took_s"] for told in ended) < PATIENCE_S / 2
    usable = sum("clips" in told for told in ended)
    assert NUM_FILES / 4 < usable < NUM_FILES, "the files are spoilt too much, or not at all"
