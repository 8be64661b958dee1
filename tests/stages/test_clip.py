"""Clips are cut where PySceneDetect and published oracles cut, and hold exactly the frames they say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from stages import cuts, media
from stages.base import BadRow
from stages.clip import Clips, _parts
from stages.sample_films import FADE
from tests.stages.conftest import Corpus, raw_row

Rows = Callable[[Path], dict[str, Any]]


def decoded(payload: bytes | Path) -> list[tuple[float, np.ndarray]]:
    source = io.BytesIO(payload) if isinstance(payload, bytes) else str(payload)
    with av.open(source) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def ranges(clips: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(clip["start_frame"], clip["end_frame"]) for clip in clips]


ORACLE = ["bbb_0_30.webm", "bikes.mp4", "fades.mp4", "counter.mp4", "dj_video1.mp4", "dj_video3.mp4", "nasa_13013.mp4"]
ORACLE += ["stream_textcard.webm", "basketball.mp4", "chaplin.mp4", "rollercoaster.mp4", "laion_slides.mp4"]
ORACLE += ["countdown.mp4", "odd/failing_audio.mp4"]
NO_SCENES = {"bbb_0_30.webm": [8], "nasa_13013.mp4": [64]}
"""Middles of a dark stretch that the merging leaves out: nearer to the start than a scene lasts; a dark scene."""


@pytest.mark.parametrize("name", ORACLE)
def test_cuts_equal_the_oracles(shared: Path, name: str) -> None:
    told = json.loads((shared / "oracles/scene_cuts.json").read_text())["computed_with_pyscenedetect"]["videos"][name]
    with media.opened(shared / "videos" / name) as film:
        seen, rate = cuts.changes(film), Fraction(film.stream.average_rate or 1)
    assert cuts.hard_cuts(seen, rate, 15, 27.0) == told["ContentDetector"]
    found = cuts.cuts(seen, rate, 15, 27.0, 12.0)
    assert sorted(found + NO_SCENES.get(name, [])) == sorted(told["ContentDetector"] + told["ThresholdDetector"])


PEERS = ["bikes.mp4", "toy_frog.webm", "stream_textcard.webm", "carphone_distorted.mp4", "newtonscradle.gif"]
PEERS += ["odd/full_range_bt601.mp4", "odd/odd_321x241_444_10bit.mp4", "odd/hevc_12bit_hdr.mp4"]


@pytest.mark.parametrize("name", PEERS)
def test_scores_are_pyscenedetects_own(shared: Path, name: str) -> None:
    """On whole pictures, shrunk as it shrinks them: what sampling the planes first may cost."""
    from scenedetect import ContentDetector, FrameTimecode, StatsManager

    peer, content, light = ContentDetector(), [], []
    peer.stats_manager = StatsManager()
    with media.opened(shared / "videos" / name) as film:
        for index, frame in enumerate(film.frames()):
            width, height = media.upright_size(frame)
            scale = max(1.0, width / 256)
            image = cv2.resize(
                media.picture(frame, width, height, order="bgr24"), (round(width / scale), round(height / scale))
            )
            now = FrameTimecode(index, 25.0)
            peer.process_frame(now, image)
            content.append(peer.stats_manager.get_metrics(now, ["content_val"])[0] or 0.0)
            light.append(float(image.mean()))
    with media.opened(shared / "videos" / name) as film:
        seen = cuts.changes(film)
    assert len(seen.content) == len(content) > 0
    away = np.abs(np.array(seen.content) - content)
    assert np.median(away) < 0.4 and away.max() < 2.5
    assert np.abs(np.array(seen.light) - light).max() < 1.5


def test_grey_has_no_hue_to_change() -> None:
    """A rounding error between B, G and R would be a colour, and its hue any."""
    for full, depth in ((True, 8), (False, 8), (False, 10)):
        for space in (1, 2, 9):
            grey = [np.arange(256, dtype=np.uint16) << (depth - 8)] + [np.full(256, 128 << (depth - 8), np.uint16)] * 2
            stored: Any = np.stack(grey, -1)[None].astype(np.uint8 if depth == 8 else np.uint16)
            mixed = cv2.transform(stored, cuts._to_bgr(space, full, depth))
            assert (mixed[..., 0] == mixed[..., 1]).all() and (mixed[..., 1] == mixed[..., 2]).all()


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


def test_each_frame_of_each_clip_is_the_sources(corpus: Corpus, video_row: Rows) -> None:
    """35 dB and more, which neither neighbour reaches: boundaries are exact to the frame (W7)."""
    path = corpus.raw / "videos/film_000.mp4"
    source = np.stack([picture for _, picture in decoded(path)]).astype(np.float32)
    clips = Clips(max_clip_s=1.1).process([video_row(path)], None)[0]
    assert [clip["start_frame"] for clip in clips[1:]] == [clip["end_frame"] for clip in clips[:-1]]
    assert clips[0]["start_frame"] == 0 and clips[-1]["end_frame"] == len(source) and len(clips) > 5

    def psnr(picture: np.ndarray, index: int) -> float:
        return 10 * np.log10(255**2 / np.square(source[index] - picture).mean())

    for clip in clips:
        pictures = [picture for _, picture in decoded(clip["media"])]
        assert len(pictures) == clip["num_frames"]
        for index, picture in enumerate(pictures, clip["start_frame"]):
            near = {at: psnr(picture, at) for at in range(max(0, index - 1), min(len(source), index + 2))}
            assert near[index] == max(near.values()) and near[index] > 35, (index, near)


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
    assert cuts.merged([30], [(40, 50, 60)], 15, 100) == [30, 50]
    assert cuts.merged([50], [(40, 55, 70)], 15, 100) == [50]  # a fade's cut yields to a hard cut nearby
    assert cuts.merged([20, 80], [(20, 50, 80)], 15, 100) == [20, 80]  # a dark scene between hard cuts is no fade
    assert cuts.merged([], [(0, 4, 8), (90, 95, 99)], 15, 100) == []  # no slivers at the ends
    assert cuts.merged([0, 100], [], 15, 100) == []


def test_sub_clips_have_10_to_20_s_and_shorter_scenes_stay_whole() -> None:
    longest = Clips().max_clip_s * 24
    for num_frames in range(1, 24 * 90):
        lengths = [end - start for start, end in _parts([0, num_frames], longest)]
        assert sum(lengths) == num_frames and max(lengths) - min(lengths) <= 1
        if num_frames <= 20 * 24:
            assert len(lengths) == 1
        else:
            assert min(lengths) >= 10 * 24 and max(lengths) <= 20 * 24


def test_long_scenes_are_cut_evenly() -> None:
    assert _parts([0, 10, 35], 10) == [(0, 10), (10, 18), (18, 26), (26, 35)]
    assert _parts([0, 1], 0.1) == [(0, 1)]


def test_cuts_of_the_corpus(corpus: Corpus, corpus_clips: dict[str, list[dict[str, Any]]]) -> None:
    """F1 at a tolerance of one frame: of hard cuts, and of the cuts in the middle of fades."""
    counts = {"hard": [0, 0, 0], "fade": [0, 0, 0]}  # found, told, right
    for name, told in corpus.truth["files"].items():
        if "cuts" not in told:
            continue
        found = {clip["start_frame"] for clip in corpus_clips[name]} - {0}
        faded = {cut for cut in found for true in told["fades"] if abs(cut - true) <= FADE}
        for kind, truth, cut in (
            ("hard", set(told["cuts"]) - set(told["fades"]), found - faded),
            ("fade", set(told["fades"]), faded),
        ):
            right = sum(any(abs(true - other) <= 1 for other in cut) for true in truth)
            counts[kind] = [a + b for a, b in zip(counts[kind], (len(cut), len(truth), right), strict=True)]
    f1 = {kind: 2 * right / (found + told) for kind, (found, told, right) in counts.items()}
    assert counts["hard"][1] > 50 and counts["fade"][1] > 30, counts
    assert f1["hard"] >= 0.99 and f1["fade"] >= 0.9, counts


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
