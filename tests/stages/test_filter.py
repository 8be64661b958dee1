"""Scores separate planted trouble from the rest, and agree with published bounds on real clips."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import filters

from stages import media, reading
from stages.base import BadRow
from stages.filter import text_area as text_areas
from stages.filter.colour import solid_colour
from stages.filter.flow import Flow
from stages.filter.quality import quality
from stages.filter.score import Scores
from tests.stages.conftest import Corpus
from tests.stages.shapes_world import draw


@pytest.fixture(scope="module")
def tools() -> Any:
    return Scores().setup(None)  # type: ignore[arg-type]


def still(path: Path) -> np.ndarray:
    return next(iter(media.sampled(path.read_bytes(), "image", 1.0, 256)))[1]


def film(pictures: list[np.ndarray], codec: str = "libx264", options: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=24, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def panning(step: float, count: int = 36) -> list[np.ndarray]:
    """A textured wall of 128 x 160 passing by at `step` pixels a frame."""
    wall = filters.gaussian(np.random.default_rng(0).random((128, 160 + 400, 3)), 3, channel_axis=2)
    wall = ((wall - wall.min()) / np.ptp(wall) * 255).astype(np.uint8)
    return [np.ascontiguousarray(wall[:, round(step * index) : round(step * index) + 160]) for index in range(count)]


def flow_of(payload: bytes) -> float | None:
    motion = Flow()
    for time, picture in media.sampled(payload, "video", 8.0, 256):
        motion.add(time, picture)
    return motion.score()


def test_flow_is_the_motion_whatever_the_codec() -> None:
    told = 100 * 1.0 * 24 / 128  # one pixel a frame, in per cent of the short side a second
    for codec, options in (
        ("libx264", {}),
        ("libx264", {"g": "1"}),
        ("libvpx-vp9", {"cpu-used": "8"}),
        ("libx265", {}),
    ):
        assert flow_of(film(panning(1.0), codec, options)) == pytest.approx(told, rel=0.15), codec


def test_a_still_film_has_no_flow_noise_and_fades_or_not() -> None:
    rng = np.random.default_rng(1)
    wall = panning(0, 1)[0]
    light = [min(1.0, index / 8, (35 - index) / 8) for index in range(36)]
    noisy = [(wall * level + rng.normal(0, 1.5, (128, 160, 1))).clip(0, 255).astype(np.uint8) for level in light]
    score = flow_of(film(noisy))
    assert score is not None and score < 3 < (flow_of(film(panning(0.5))) or 0)


def test_unknown_flow_is_not_low(shared: Path, tools: Any) -> None:
    row = {"media": (shared / "images/rocket.jpg").read_bytes(), "source_kind": "image", "fps": 0.0}
    (scores,) = Scores().process([row | {"num_frames": 1, "width": 640, "height": 427}], tools)[0]
    assert scores["flow"] is None and scores["duration_s"] == 0 and scores["num_frames_seen"] == 1
    assert set(scores) == set(Scores.schema.names)


def test_text_against_data_juicers_bounds(shared: Path, tools: Any) -> None:
    """On its three frames (first, middle, last) our detector meets two of its three bounds; docs/curation.md says why
    not the third. Over the whole film the second, a shirt with large letters, has far more text than the others."""
    told = json.loads((shared / "oracles/datajuicer_video.json").read_text())["ocr_area_ratio"]["bounds_seen_in_tests"]
    assert told == {"dj_video1.mp4": "< 0.07", "dj_video2.mp4": "> 0.2", "dj_video3.mp4": "between 0.07 and 0.1"}
    theirs, ours = {}, {}
    for name in told:
        pictures = [p for _, p in media.sampled((shared / "videos" / name).read_bytes(), "video", 2.0, 256)]
        areas = {
            i: text_areas.text_area(tools[0], pictures[i]) for i in {*range(0, len(pictures), 10), len(pictures) - 1}
        }
        middle = text_areas.text_area(tools[0], pictures[len(pictures) // 2])
        theirs[name] = (areas[0] + middle + areas[len(pictures) - 1]) / 3
        ours[name] = float(np.mean(list(areas.values())))
    assert theirs["dj_video2.mp4"] > 0.2 and 0.07 < theirs["dj_video3.mp4"] < 0.1
    assert 0.07 < theirs["dj_video1.mp4"] < 0.1  # theirs is below: columns of upright signs
    assert ours["dj_video2.mp4"] > 0.2 and max(ours["dj_video1.mp4"], ours["dj_video3.mp4"]) < 0.1


@pytest.mark.slow
def test_data_juicers_motion_is_reproduced_to_the_digit_and_is_no_measure_of_fast_motion(shared: Path) -> None:
    """Its figure comes from its loop, which looks at the second frame first; and its window loses what moves fast."""
    told = json.loads((shared / "oracles/datajuicer_video.json").read_text())["motion_score_farneback_2fps"]
    assert juicer_motion(shared / "videos/dj_video1.mp4") == pytest.approx(told["dj_video1.mp4"], rel=1e-5)
    theirs, ours = zip(*(moved_at(shared, speed) for speed in (5, 10, 20, 40, 60)), strict=True)
    assert ours == pytest.approx((5, 10, 20, 40, 60), rel=0.1)
    assert max(theirs) == theirs[2] < 16 and max(theirs[3:]) < 10  # 40 and 60 look like 10


def moved_at(shared: Path, speed: float) -> tuple[float, float]:
    """Data-Juicer's motion at 2 pictures a second, and ours, of a photograph that passes by at so many per cent of the
    short side a second; both in that unit."""
    photograph = np.asarray(Image.open(shared / "images/coffee.png").convert("RGB"))

    def at(time: float, side: int) -> np.ndarray:
        shift = np.array([[1, 0, -3.6 * speed * time], [0, 1, -20]], np.float32)
        seen = cv2.warpAffine(photograph, shift, (480, 360))
        return cv2.resize(seen, (side * 4 // 3, side), interpolation=cv2.INTER_AREA)

    motion = Flow()
    for step in range(5):
        motion.add(step / 8, at(step / 8, 128))
    first, second = (cv2.cvtColor(at(time, 360), cv2.COLOR_RGB2GRAY) for time in (0, 0.5))
    return 100 * farneback(first, second) / 360 / 0.5, motion.score() or 0.0


def farneback(before: np.ndarray, after: np.ndarray) -> float:
    """Mean length of flow in pixels, with Data-Juicer's settings."""
    field = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return float(np.mean(cv2.cartToPolar(field[..., 0], field[..., 1])[0]))


def juicer_motion(path: Path) -> float:
    """`VideoMotionScoreFilter` of py-data-juicer 1.6.1: after the first frame it forgets to skip ahead."""
    film = cv2.VideoCapture(str(path))
    fps = film.get(cv2.CAP_PROP_FPS)
    step, position, before, found = round(fps / min(2.0, fps)), 0, None, []
    while (read := film.read())[0]:
        grey = cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)
        if before is not None:
            found.append(farneback(before, grey))
            film.set(cv2.CAP_PROP_POS_FRAMES, position := position + step)
        before = grey
    return float(np.mean(found))


def test_text_on_signs_and_none_on_things(shared: Path, tools: Any) -> None:
    written = ("text_japanese.jpg", "text_chinese.jpg", "text_poster_zh.jpg", "page.png", "text_phototest.tif")
    plain = ("dj_cat.jpg", "coins.png", "mdn_plumeria.jpg", "astronaut.png", "horse.png", "retina.jpg", "dj_img1.png")
    assert min(text_areas.text_area(tools[0], still(shared / "images" / name)) for name in written) > 0.1
    assert max(text_areas.text_area(tools[0], still(shared / "images" / name)) for name in plain) < 0.05


def test_small_pictures_need_no_enlarging(corpus: Corpus, tools: Any) -> None:
    name = next(
        n for n, told in corpus.truth["files"].items() if told["kind"] == "image" and told["trouble"] == ["text_heavy"]
    )
    picture = still(corpus.raw / name)
    twice = picture.repeat(2, axis=0).repeat(2, axis=1)
    assert min(text_areas.text_area(tools[0], picture), text_areas.text_area(tools[0], twice)) > 0.3


def test_quality_falls_with_damage(shared: Path) -> None:
    good = still(shared / "images/astronaut.png")
    noise = np.random.default_rng(0).normal(0, 1, good.shape)
    blurred = [quality((filters.gaussian(good, s, channel_axis=2) * 255).astype(np.uint8)) for s in (0.5, 1, 2, 4)]
    noisy = [quality((good + noise * sigma).clip(0, 255).astype(np.uint8)) for sigma in (2, 8, 16, 30)]
    faint = quality((good * 0.1 + 100).astype(np.uint8))
    assert quality(good) > 8 and blurred == sorted(blurred, reverse=True) and blurred[-1] < 1
    assert noisy == sorted(noisy, reverse=True) and noisy[-1] < 1 and faint < 4
    assert quality(np.full((64, 64, 3), 255, np.uint8)) == 0


def test_solid_colour() -> None:
    picture = np.full((100, 100, 3), (30, 90, 200), np.uint8)
    assert solid_colour(picture) == 1
    picture[:50, :50] = 250
    assert solid_colour(picture) == pytest.approx(0.75, abs=0.01)


def test_broken_media_is_a_bad_row(tools: Any) -> None:
    row = {"media": b"nothing", "source_kind": "video", "fps": 24.0, "num_frames": 1, "width": 8, "height": 8}
    picture = row | {"source_kind": "image"}
    assert all(isinstance(outcome, BadRow) for outcome in Scores().process([row, picture], tools))


SELECT = {
    "size": lambda s: s["short_side"] >= 96,
    "text": lambda s: s["text_area"] < 0.1,
    "flow": lambda s: s["flow"] is None or 0.1 <= s["flow"] <= 30,
    "colour": lambda s: s["solid_colour"] < 0.99,
    "quality": lambda s: s["quality"] >= 1.5,
}
CLAUSE = {
    "too_small": "size",
    "text_heavy": "text",
    "static": "flow",
    "too_fast": "flow",
    "solid_colour": "colour",
    "low_quality": "quality",
}


@pytest.mark.slow
def test_select_takes_planted_trouble_for_the_right_reason(
    corpus: Corpus, corpus_clips: dict[str, list[dict[str, Any]]], tools: Any
) -> None:
    good = passed = planted = caught = 0
    for name, clips in corpus_clips.items():
        told = corpus.truth["files"][name]
        for clip, (scores,) in zip(clips, Scores().process(clips, tools), strict=True):
            scenes = told.get("scenes", [told | {"start": 0, "end": 1}])
            inside = [s for s in scenes if min(s["end"], clip["end_frame"]) - max(s["start"], clip["start_frame"]) > 6]
            inside = inside or scenes[:1]
            troubles = {*told["trouble"], *(trouble for scene in inside for trouble in scene["trouble"])} & set(CLAUSE)
            failed = {clause for clause, holds in SELECT.items() if not holds(scores)}
            if troubles:
                planted, caught = planted + 1, caught + bool({CLAUSE[trouble] for trouble in troubles} & failed)
            else:
                good, passed = good + 1, passed + (not failed)
    assert good > 150 and passed / good > 0.97
    assert planted >= 20 and caught / planted > 0.95


def test_batches_do_not_matter(corpus_clips: dict[str, list[dict[str, Any]]], tools: Any) -> None:
    clips = [clip for name in sorted(corpus_clips)[:12] for clip in corpus_clips[name][:1]][-10:]
    assert Scores().process(clips, tools) == [Scores().process([clip], tools)[0] for clip in clips]


def test_two_stars_side_by_side_are_no_text(tools: Any) -> None:
    """The detector boxes them, as thick as large letters are; nothing is read in the box."""
    pictures = [draw([("star", "yellow", x, 0.5, 0.17) for x in (0.25, 0.72)], ground) for ground in ("white", "black")]
    assert all(len(reading._boxes(tools[0], picture)) == 1 for picture in pictures)
    assert [text_areas.text_area(tools[0], picture) for picture in pictures] == [0.0, 0.0]
