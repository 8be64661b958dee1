"""Scorers by name: real CLIP classes on tiny random weights, one call for many clips, weights named by content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.types import UserError
from pipelines.config import strict
from stages import media
from stages.base import BadRow
from stages.filter.colour import flat_colours
from stages.filter.fingerprint import fingerprint
from stages.filter.laion import Laion
from stages.filter.preferences import Preferences
from stages.filter.score import Scores
from stages.filter.text_area import TextAreas, detector, text_area
from tests.stages import tiny_models
from tests.stages.test_filter import film, panning


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Three short clips and something broken between them."""
    shared = {"source_kind": "video", "fps": 24.0, "num_frames": 24, "width": 160, "height": 128}
    clips = [shared | {"media": film(panning(step, 24))} for step in (0.2, 1.0, 3.0)]
    return [clips[0], shared | {"media": b"nothing"}, *clips[1:]]


def test_a_score_is_the_least_of_three_frames_and_clips_are_asked_about_at_once(clip_folder, rows, monkeypatch) -> None:
    stage = Scores(scorers=("technical", "laion"), weights={"laion": str(clip_folder)})
    tools = stage.setup(None)  # type: ignore[arg-type]
    calls: list[int] = []
    embedded = Laion.embedded
    monkeypatch.setattr(Laion, "embedded", lambda self, shots: calls.append(len(shots)) or embedded(self, shots))
    together = stage.process(rows, tools)
    # 24 frames at 24 a second are looked at twice: both are among the three
    assert calls == [6] and not isinstance(together[1], list)
    alone = [stage.process([row], tools)[0] for row in rows if row is not rows[1]]
    for one, other in zip([together[0], *together[2:]], alone, strict=True):
        assert set(one[0]) == set(Scores.schema.names)
        for name in ("laion", "technical"):
            assert one[0][name] == pytest.approx(other[0][name], abs=1e-2)
        assert np.linalg.norm(one[0]["embedding"]) == pytest.approx(1, abs=1e-2)
    pictures = [picture for _, picture in media.sampled(rows[0]["media"], "video", 2.0, 256)]
    scorer = tools[1]["laion"]
    assert together[0][0]["laion"] == pytest.approx(min(scorer.scored(scorer.embedded(pictures))), abs=1e-2)


def test_preference_is_of_a_clip_and_its_own_caption_whatever_stands_beside_it(clip_folder, rows) -> None:
    stage = Preferences(weights={"hps": str(clip_folder)})
    tools = stage.setup(None)  # type: ignore[arg-type]
    said = [
        "a wall",
        "never seen",
        "a wall that moves, told of at such length that no model reads it to its end" * 3,
        "a",
    ]
    given = [{"text": text, "parent": row} for text, row in zip(said, rows, strict=True)]
    together = stage.process(given, tools)
    assert isinstance(together[1], BadRow)
    for row, outcome in zip(given, together, strict=True):
        if not isinstance(outcome, BadRow):
            (alone,) = stage.process([row], tools)[0]
            assert outcome[0]["mps"] is None and outcome[0]["hps"] == pytest.approx(alone["hps"], abs=1e-2)
    (other,) = stage.process([{"text": "something else", "parent": rows[0]}], tools)[0]
    assert other["hps"] != pytest.approx(together[0][0]["hps"], abs=1e-2)
    shots = media.evenly(rows[0]["media"], "video", 24, 3, 256)
    text, seen = tools["hps"]._clip.texts(["a wall"]), tools["hps"]._clip.embedded(shots)
    assert together[0][0]["hps"] == pytest.approx(100 * float((seen @ text.T).min()), abs=1e-2)
    with pytest.raises(UserError, match="takes hps, mps"):
        Preferences(weights={"laion": str(clip_folder)})


def test_the_aesthetic_head_is_a_chain_of_linear_layers(clip_folder: Path) -> None:
    from safetensors.torch import load_file

    head = load_file(clip_folder / "head.safetensors")
    unit = np.eye(16, dtype=np.float32)[:3]
    by_hand = torch.from_numpy(unit) @ head["layers.0.weight"].T + head["layers.0.bias"]
    by_hand = (by_hand @ head["layers.2.weight"].T + head["layers.2.bias"]).flatten()
    assert Laion(str(clip_folder)).scored(unit) == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_weights_are_named_by_what_they_are_not_by_where_they_lie(clip_folder: Path, tmp_path: Path) -> None:
    def of(place: Path | str) -> dict[str, Any]:
        return Scores(scorers=("laion",), weights={"laion": str(place)}).settings()

    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    assert of(moved) == of(clip_folder) and set(of(moved)["weights"]) == {"laion"}
    tiny_models.clip(moved, seed=1)
    assert of(moved) != of(clip_folder)
    assert of("openai/clip-vit-large-patch14@abc")["weights"]["laion"] == "openai/clip-vit-large-patch14@abc"
    assert Scores().settings() == Scores(weights={"laion": "unused"}).settings()
    assert (
        Preferences(weights={"hps": str(moved)}).settings() != Preferences(weights={"hps": str(clip_folder)}).settings()
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"scorers": ["laion"]}, "write scores.weights.laion=DIR"),
        ({"scorers": ["beauty"]}, "takes technical, laion"),
        ({"scorers": ["laion"], "weights": {"laion": "/nowhere"}}, "there are no weights at /nowhere"),
    ],
)
def test_a_scorer_that_cannot_work_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        strict(Scores, given, "scores").settings()


@pytest.mark.shared
def test_charts_tables_and_documents_are_told_from_photographs(shared: Path) -> None:
    """The clause of conf/pipeline/curate.yaml."""
    detect = detector()

    def is_document(name: str) -> bool:
        _, picture = next(iter(media.sampled((shared / "images" / name).read_bytes(), "image", 1.0, 256)))
        area = text_area(detect, picture)
        return area >= 0.3 or (area >= 0.02 and flat_colours(picture) >= 0.75)

    drawn = ("chart_pie.png", "diagram_clip.png", "table_resize.png", "page.png", "text_phototest.tif", "formula.png")
    seen = ("chelsea.png", "coco_562207.jpg", "coco_40083.jpg", "astronaut.png", "mdn_hummingbird.jpg", "dj_cat.jpg")
    assert all(map(is_document, drawn)) and not any(map(is_document, seen))


def test_what_stands_still_is_read_once_and_a_new_line_is_read() -> None:
    rng = np.random.default_rng(0)
    wall = panning(0, 1)[0]
    told = wall.copy()
    told[100:108, 20:120:3] = 255
    reads: list[np.ndarray] = []

    class Nothing:
        boxes = None

    def detect(picture: np.ndarray, **_: Any) -> Any:
        reads.append(picture)
        return Nothing()

    areas = TextAreas(detect)
    for picture in (wall, wall, told, told, wall):
        noisy = picture.astype(np.int16) + rng.normal(0, 2, picture.shape[:2])[..., None]
        areas.area(noisy.clip(0, 255).astype(np.uint8))
    assert len(reads) == 3


def test_a_plain_picture_has_no_fingerprint() -> None:
    assert fingerprint(np.full((64, 64, 3), 200, np.uint8)) is None
    assert fingerprint(panning(0, 1)[0]) is not None
