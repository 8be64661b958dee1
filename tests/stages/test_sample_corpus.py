"""The sample corpus is what its truth says, from the seed alone, and shows nothing that is held back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from stages import sample_corpus, sample_films
from stages import sample_world as world
from tests.stages.conftest import Corpus

SMALL = {"num_videos": 4, "num_stills": 30, "num_texts": 3}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_nothing_is_done_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample_corpus.write(tmp_path / name / "raw", tmp_path / name / "truth.json", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    raw, truth = tmp_path / "a/raw", tmp_path / "a/truth.json"
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*.*")}
    sample_corpus.write(raw, truth, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*.*")} == before
    (raw / "stills/still_00003.png").unlink()
    sample_corpus.write(raw, truth, **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    sample_corpus.write(raw, truth, **SMALL, seed=8)
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_films_are_the_same_bytes_every_time(codec: str) -> None:
    made = set()
    for _ in range(3):
        rng = np.random.default_rng(0)
        made.add(sample_films.encoded(sample_films.acted(rng, [], 128, 128, None), codec, None, False, True))
    assert len(made) == 1


def test_nothing_held_back_is_shown_or_told(corpus: Corpus) -> None:
    scenes = []
    for told in corpus.truth["files"].values():
        scenes += told.get("scenes", [told] if "caption" in told else [])
    assert len(scenes) > 200
    pairs = {tuple(pair) for pair in corpus.truth["held_back"]["pairs"]}
    for scene in scenes:
        assert not pairs & {(thing["shape"], thing["colour"]) for thing in scene["objects"]}
    texts = "\n".join(path.read_text() for path in (corpus.raw / "texts").iterdir())
    captions = texts + "\n".join(scene["caption"] for scene in scenes)
    for shape, colour in pairs:
        assert f"{colour} {shape}" not in captions
    for first, relation, second in corpus.truth["held_back"]["relations"]:
        for one, way, other in ((first, relation, second), (second, world.INVERSE[relation], first)):
            for line in captions.splitlines():
                before, found, after = line.partition(f" {way} ")
                assert not (
                    found and before.rstrip("s").endswith(one) and after.split(" on a ")[0].rstrip("s").endswith(other)
                )


def test_every_planted_trouble_is_there(corpus: Corpus) -> None:
    files = corpus.truth["files"]
    troubles = {trouble for told in files.values() for trouble in told["trouble"]}
    troubles |= {t for told in files.values() for scene in told.get("scenes", []) for t in scene["trouble"]}
    assert troubles == {
        "static", "too_fast", "text_heavy", "solid_colour", "too_small", "low_quality",
        "exact_duplicate", "near_duplicate", "truncated", "empty", "not_a_medium",
    }  # fmt: skip
    films = [told for told in files.values() if "scenes" in told]
    assert {told["codec"] for told in films} == {"h264", "hevc", "vp9"}
    assert sum(told["rotated"] for told in films) == 1 and sum(told["variable_fps"] for told in films) == 1
    assert all(3 <= len(told["scenes"]) <= 6 for told in films)
    assert all(36 <= scene["end"] - scene["start"] <= 96 for told in films for scene in told["scenes"])
    for name, told in files.items():
        if "exact_duplicate" in told["trouble"]:
            assert (corpus.raw / name).read_bytes() == (corpus.raw / told["copy_of"]).read_bytes()
        if "near_duplicate" in told["trouble"]:
            assert (corpus.raw / name).read_bytes() != (corpus.raw / told["copy_of"]).read_bytes()


def test_truth_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(raw: Path) -> dict[str, object]:
        raise OSError("disk full")

    monkeypatch.setattr(sample_corpus, "_broken", fail)
    with pytest.raises(OSError, match="disk full"):
        sample_corpus.write(tmp_path / "raw", tmp_path / "truth.json", **SMALL)
    assert not (tmp_path / "truth.json").exists() and not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    sample_corpus.write(tmp_path / "raw", tmp_path / "truth.json", **SMALL)
    assert json.loads((tmp_path / "truth.json").read_text())["arguments"]["videos"] == 4


def test_shapes_have_equal_areas_and_stated_reach() -> None:
    for shape in world.SHAPES:
        x, y = world.outline(shape, 7.0).T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        assert area == pytest.approx(math.pi, rel=1e-6)
        assert np.hypot(x, y).max() == pytest.approx(world._REACH[shape], rel=2e-3)
