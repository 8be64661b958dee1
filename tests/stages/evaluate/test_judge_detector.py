"""The detector with weights, on tiny random ones: shapes, names and refusals; nothing is said of how well it sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.types import BadRow, UserError
from stages.evaluate import judge_detector
from stages.evaluate.judge import Answer
from stages.evaluate.judge_detector import Detector, digest
from stages.evaluate.suite import Question
from stages.evaluate.suite_geneval import COLOURS, GenEval
from stages.evaluate.suite_t2i import Spatial
from stages.evaluate.verdicts import Verdicts
from tests.stages import tiny_models

NAMES = ("cat", "dog", "keyboard")
WIDE = np.random.default_rng(0).integers(0, 256, (1, 24, 48, 3), dtype=np.uint8)
TALL = np.random.default_rng(1).integers(0, 256, (1, 40, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    home = tmp_path_factory.mktemp("models")
    return str(tiny_models.detector(home / "detector", NAMES)), str(tiny_models.clip(home / "clip"))


@pytest.fixture(scope="module")
def judge(folders: tuple[str, str]) -> Detector:
    return Detector(*folders)


def answer(about: dict[str, Any], frames: np.ndarray | None = WIDE) -> Answer:
    return Answer(question=Question(prompt="p", task="colors", about=about), name="q", index=0, frames=frames)


def clause(name: str, **more: Any) -> dict[str, Any]:
    return {"include": [{"class": name, "count": 1, **more}], "exclude": []}


def test_objects_lie_in_the_picture_and_do_not_depend_on_what_is_beside_it(judge: Detector) -> None:
    answers = [answer(clause("cat", color="red")), answer(clause("dog", color="red"), TALL)]
    wide, tall = judge.evidence(answers)
    assert not isinstance(wide, BadRow) and not isinstance(tall, BadRow)
    assert wide["size"] == [48, 24] and tall["size"] == [20, 40]
    assert 0 < len(wide["objects"]) <= 6
    for found, name in ((wide, "cat"), (tall, "dog")):
        width, height = found["size"]
        for one in found["objects"]:
            left, top, right, bottom = one["box"]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert one["name"] in NAMES and 0.05 < one["score"] < 1
            # colours are asked for where a clause names one, of that class alone
            assert (one["colour"] in COLOURS) if one["name"] == name else one["colour"] is None
        assert found["objects"] == sorted(found["objects"], key=lambda one: -one["score"])
    assert [judge.evidence([one])[0] for one in answers] == [wide, tall]
    json.dumps(wide)
    verdict = GenEval(threshold=0.05).verdict(answers[0].question, wide)
    assert verdict.score in {0.0, 1.0}


def test_a_thing_that_the_detector_has_no_word_for_is_no_verdict(judge: Detector) -> None:
    bad, called, none = judge.evidence(
        [answer(clause("frog")), answer(clause("computer keyboard")), answer(clause("cat"), None)]
    )
    assert isinstance(bad, BadRow) and "'frog'" in str(bad) and isinstance(none, BadRow)
    assert not isinstance(called, BadRow)  # GenEval's word for COCO's keyboard
    assert {one["name"] for one in called["objects"]} <= {"cat", "dog", "computer keyboard"}


def test_a_colour_is_the_nearest_of_the_mean_prompts(judge: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP in which a picture of the colour that a prompt names lies beside that prompt."""
    told = {"green": 0, "blue": 1}

    class Plain:
        def embedded(self, crops: Any) -> np.ndarray:
            return np.eye(3)[[0 if crop[..., 1].mean() > crop[..., 2].mean() else 1 for crop in crops]]

        def texts(self, said: Any) -> np.ndarray:
            return np.eye(3)[[next((at for name, at in told.items() if name in text), 2) for text in said]]

    monkeypatch.setitem(judge.__dict__, "_clip", Plain())
    monkeypatch.setattr(judge, "_colours", {})
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :20, 1] = picture[:, 20:, 2] = 255
    boxes = [{"box": [0.0, 0.0, 20.0, 20.0]}, {"box": [20.0, 0.0, 40.0, 20.0]}, {"box": [39.0, 19.0, 40.0, 20.0]}]
    assert judge._colour_of(picture, "cat", boxes) == ["green", "blue", "blue"]
    assert judge_detector._crop(picture, boxes[2]["box"]).shape == (4, 4, 3)


def test_spatial_needs_no_clip_and_geneval_does(folders: tuple[str, str]) -> None:
    plain = Detector(folders[0])
    (question,) = Spatial().questions(b"a cat on the left of a dog")
    (found,) = plain.evidence([Answer(question=question, name="q", index=0, frames=WIDE)])
    assert not isinstance(found, BadRow) and 0 <= Spatial().verdict(question, found).score <= 1
    with pytest.raises(UserError, match=r"add verdicts.clip=DIR"):
        Verdicts(detector=folders[0])._judge("geneval")
    with pytest.raises(UserError, match=r"verdicts.detector=DIR"):
        Verdicts()._judge("t2i_spatial")
    assert isinstance(Verdicts(detector=folders[0])._judge("t2i_spatial"), Detector)
    with pytest.raises(UserError, match=r"give verdicts.clip=DIR as well"):
        plain._colour_of(WIDE[0], "cat", [{"box": [0, 0, 9, 9]}])


def test_weights_are_named_by_what_they_hold(folders: tuple[str, str], judge: Detector, tmp_path: Path) -> None:
    moved = str(shutil.copytree(folders[0], tmp_path / "moved"))
    assert Detector(moved, folders[1]).name == judge.name and "-boxes-clip-" in judge.name
    one, other = (Verdicts(detector=place, clip=folders[1]).settings() for place in (folders[0], moved))
    assert one == other and set(one["models"]) == {"detector", "clip", "revision"} and moved not in str(other)
    tiny_models.detector(Path(moved), NAMES, seed=1)
    assert Detector(moved, folders[1]).name != judge.name and Verdicts(detector=moved).settings() != one
    assert "models" not in Verdicts().settings() and "clip" not in Verdicts(clip=folders[1]).settings()
    assert set(Verdicts(clip=folders[1]).settings()["models"]) == {"clip", "revision"}


@pytest.mark.parametrize("place", ["facebook/detr-resnet-50", "/nowhere"])
def test_a_name_on_the_hub_is_refused(place: str) -> None:
    for ask in (lambda: digest(place, "detector"), lambda: Detector(place), Verdicts(detector=place).settings):
        with pytest.raises(UserError, match=r"verdicts.detector=.* is no folder of a model"):
            ask()


def test_a_folder_of_another_model_is_one_sentence(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"verdicts.detector=.* cannot be loaded") as caught:
        Detector(folders[1])
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        Detector(str(tmp_path))
