"""Clips are cut where PySceneDetect and published oracles cut, and hold exactly the frames they say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from stages import media
from stages.base import BadRow
from stages.clip import Clips, _parts
from stages.cuts import merged
from tests.stages.conftest import Corpus, raw_row

Rows = Callable[[Path], dict[str, Any]]


def decoded(payload: bytes | Path) -> list[tuple[float, np.ndarray]]:
    source = io.BytesIO(payload) if isinstance(payload, bytes) else str(payload)
    with av.open(source) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def ranges(clips: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(clip["start_frame"], clip["end_frame"]) for clip in clips]


@pytest.mark.parametrize("name", ["bikes.mp4", "dj_video1.mp4", "fades.mp4", "countdown.mp4", "basketball.mp4"])
def test_cuts_equal_the_oracles(shared: Path, video_row: Rows, name: str) -> None:
    told = json.loads((shared / "oracles/scene_cuts.json").read_text())["computed_with_pyscenedetect"]["videos"][name]
    row = video_row(shared / "videos" / name)
    assert Clips().cuts(row["raw"].path, row["fps"])[0] == sorted(told["ContentDetector"] + told["ThresholdDetector"])


@pytest.mark.parametrize("name", ["bikes.mp4", "toy_frog.webm", "chaplin.mp4", "stream_textcard.webm"])
def test_content_cuts_equal_pyscenedetects_own(shared: Path, video_row: Rows, name: str) -> None:
    from scenedetect import ContentDetector, detect

    path = shared / "videos" / name
    row = video_row(path)
    theirs = detect(str(path), ContentDetector(min_scene_len=max(1, round(0.6 * row["fps"]))))
    assert Clips(fade_threshold=0).cuts(path, row["fps"])[0] == [scene[0].frame_num for scene in theirs[1:]]


def test_frames_are_exact(shared: Path, video_row: Rows) -> None:
    path = shared / "videos/counter.mp4"  # every frame shows its own number
    source = [picture for _, picture in decoded(path)]
    clips = Clips(max_clip_s=0.7, max_short_side=4000).process([video_row(path)], None)[0]
    assert ranges(clips) == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 25), (25, 30)]
    grey = np.stack([picture[::4, ::4].mean(axis=2) for picture in source])
    for clip in clips:
        for index, (_, picture) in enumerate(decoded(clip["media"]), clip["start_frame"]):
            away = np.abs(grey - picture[::4, ::4].mean(axis=2)).mean(axis=(1, 2))
            assert int(away.argmin()) == index


def test_a_clip_says_what_it_is(shared: Path, video_row: Rows) -> None:
    clips = Clips().process([video_row(shared / "videos/bikes.mp4")], None)[0]
    assert ranges(clips) == [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242), (242, 250)]
    assert [clip["label"] for clip in clips][1] == "bikes.mp4 [30:76]"
    for clip in clips:
        assert set(clip) == {*Clips.schema.names, "label"}
        pictures = decoded(clip["media"])
        assert len(pictures) == clip["num_frames"] == clip["end_frame"] - clip["start_frame"]
        assert pictures[0][1].shape == (clip["height"], clip["width"], 3)
        assert pictures[0][0] == 0 and clip["end_s"] - clip["start_s"] == pytest.approx(clip["num_frames"] / 25)


@pytest.mark.parametrize(
    "name", ["odd/vfr_1080p.mp4", "newtonscradle.gif", "odd/no_duration.webm", "odd/mpeg1_mp2.mpg"]
)
def test_time_stamps_are_kept(shared: Path, video_row: Rows, name: str) -> None:
    path = shared / "videos" / name
    source = [time for time, _ in decoded(path)]
    (clip,) = Clips(threshold=255, fade_threshold=0, max_clip_s=99, max_short_side=120).process(
        [video_row(path)], None
    )[0]
    assert [time for time, _ in decoded(clip["media"])] == pytest.approx(
        [time - source[0] for time in source], abs=1e-3
    )
    assert clip["start_s"] == pytest.approx(source[0])


def test_avi_time_does_not_run_backwards(shared: Path, video_row: Rows) -> None:
    (clip,) = Clips().process([video_row(shared / "videos/odd/vfr_mpeg4.avi")], None)[0]
    times = np.array([time for time, _ in decoded(clip["media"])])
    assert len(times) == 164 and np.diff(times) == pytest.approx(np.full(163, 0.04), abs=1e-3)


@pytest.mark.parametrize(("name", "turns"), [("rotated_90.mov", -1), ("rotated_180.mov", 2), ("nasa_rotated.mp4", 1)])
def test_rotated_films_stand_upright(shared: Path, video_row: Rows, name: str, turns: int) -> None:
    path = shared / "videos/odd" / name
    (clip,) = Clips().process([video_row(path)], None)[0]
    upright = np.rot90(decoded(path)[0][1], turns)
    first = decoded(clip["media"])[0][1]
    assert first.shape == upright.shape
    assert np.abs(first.astype(int) - upright).mean() < 3


@pytest.mark.slow
def test_odd_files_become_clips_that_decode(shared: Path, video_row: Rows) -> None:
    for name in (shared / "videos/odd").iterdir():
        try:
            row = video_row(name)
        except BadRow:
            continue
        clips = Clips(max_short_side=120, preset="ultrafast").process([row], None)[0]
        assert not isinstance(clips, BadRow), name
        assert sum(clip["num_frames"] for clip in clips) == row["num_frames"], name
        for clip in clips[:2]:
            width, height = clip["width"], clip["height"]
            assert not width % 2 and not height % 2
            assert decoded(clip["media"])[0][1].shape == (height, width, 3), name


def test_pixels_become_square(shared: Path, video_row: Rows) -> None:
    (clip,) = Clips().process([video_row(shared / "videos/carphone_pristine.mp4")], None)[0]
    assert (clip["width"], clip["height"]) == (194, 144)  # 176 * 128 / 117 = 192.5, rounded, made even


def test_stills_keep_their_bytes_unless_readers_would_differ(tmp_path: Path, shared: Path) -> None:
    plain = raw_row(shared / "images/rocket.jpg", "images")
    clip = Clips().process([plain], None)[0][0]
    assert clip["media"] == plain["raw"].path.read_bytes() and clip["encoding"] == "jpeg"
    assert (clip["num_frames"], clip["fps"], clip["source_kind"], clip["label"]) == (1, 0.0, "image", "rocket.jpg")
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(turned, exif=exif)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(clear)
    names = [
        turned,
        clear,
        *(shared / "images/odd" / n for n in ("chessboard_GRAY_U16.tif", "cmyk.jpg", "gradient.avif")),
    ]
    for path in names:
        clip = Clips().process([raw_row(path, "images")], None)[0][0]
        image = Image.open(io.BytesIO(clip["media"]))
        assert (clip["encoding"], image.format, image.mode) == ("png-rewritten", "PNG", "RGB"), path
        assert image.size == (clip["width"], clip["height"])
        if path == turned:
            assert image.size == (20, 40)
        if path == clear:
            assert image.getpixel((0, 0)) == (255, 255, 255)


def test_merging_of_detectors() -> None:
    assert merged([30], [(40, 50, 60)], 15, 100) == [30, 50]
    assert merged([50], [(40, 55, 70)], 15, 100) == [50]  # a fade's cut yields to a hard cut nearby
    assert merged([20, 80], [(20, 50, 80)], 15, 100) == [20, 80]  # a dark scene between hard cuts is no fade
    assert merged([], [(0, 4, 8), (90, 95, 99)], 15, 100) == []  # no slivers at the ends
    assert merged([0, 100], [], 15, 100) == []


def test_long_scenes_are_cut_evenly() -> None:
    assert _parts([0, 10, 35], 10) == [(0, 10), (10, 18), (18, 26), (26, 35)]
    assert _parts([0, 1], 0.1) == [(0, 1)]


def test_cuts_of_the_corpus(corpus: Corpus, corpus_clips: dict[str, list[dict[str, Any]]]) -> None:
    hits = misses = wrong = 0
    for name, told in corpus.truth["files"].items():
        if "cuts" not in told:
            continue
        found = [clip["start_frame"] for clip in corpus_clips[name]][1:]
        for cut in told["cuts"]:
            grace = 6 if cut in told["fades"] else 0  # a quarter of a second where the screen is black anyway
            hit = any(abs(cut - other) <= grace for other in found)
            hits, misses = hits + hit, misses + (not hit)
        wrong += max(0, len(found) - len(told["cuts"]))
    assert 2 * hits / (2 * hits + misses + wrong) > 0.97


def test_batches_and_repetition_do_not_matter(corpus: Corpus, video_row: Rows) -> None:
    rows = [video_row(corpus.raw / f"videos/film_{number:03d}.mp4") for number in (0, 3, 9)]
    together = Clips().process(rows, None)
    assert together == [Clips().process([row], None)[0] for row in rows]


def test_damage_at_the_second_reading_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "not.mp4"
    path.write_bytes(b"nothing")
    row = raw_row(path, "videos", fps=24.0, num_frames=3)
    assert isinstance(Clips().process([row], None)[0], BadRow)
    with pytest.raises(BadRow), media.opened(path):
        pass
