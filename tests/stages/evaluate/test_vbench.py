"""VBench: the total of sixteen as published, flicker exactly, motion on films whose motion is known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from infra.types import BadRow, UserError
from stages.evaluate.judge import Answer
from stages.evaluate.suite import Judged, Verdict
from stages.evaluate.suite_consistency import BackgroundConsistency, SubjectConsistency
from stages.evaluate.suite_vbench import (
    DYNAMIC,
    FLICKERING,
    SMOOTHNESS,
    VBench,
    consistency,
    flickering,
    moves,
    smoothness,
    total,
)
from stages.evaluate.verdicts import Verdicts
from tests.stages import tiny_models


def panned(step: int, num_frames: int = 9, side: int = 96) -> np.ndarray:
    """A smooth texture that goes right by `step` pixels a frame."""
    import cv2

    wall = np.random.default_rng(0).integers(0, 255, (side, side + 9 * 20, 3), dtype=np.uint8)
    wall = cv2.GaussianBlur(wall, (0, 0), 4)
    wall = cv2.normalize(wall, None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([wall[:, 180 - step * t : 180 - step * t + side] for t in range(num_frames)])


@pytest.mark.shared
def test_published_totals(shared: Path) -> None:
    rows = json.loads((shared / "oracles" / "benchmark_scores.json").read_text())["vbench"]["models"]
    assert len(rows) == 9
    for row in rows.values():
        found = total({name: value / 100 for name, value in row["dimensions_percent"].items()})
        assert {name: 100 * value for name, value in found.items()} == pytest.approx(row["published"], abs=0.0101)


def test_no_total_without_all_dimensions_by_their_own_names() -> None:
    quality = ("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness")
    quality += ("aesthetic_quality", "imaging_quality", "dynamic_degree")
    assert set(total(dict.fromkeys(quality, 1.0))) == {"quality"}
    measured = {DYNAMIC: 1.0, FLICKERING: 1.0, SMOOTHNESS: 1.0}
    assert total(dict.fromkeys(quality[:2] + quality[4:6], 1.0) | measured) == {}


@pytest.mark.shared
def test_the_published_prompts(shared: Path) -> None:
    questions = list(VBench().questions((shared / "prompts" / "vbench" / "VBench_full_info.json").read_bytes()))
    tasks = Counter(question.task for question in questions)
    assert tasks == {"temporal_flickering": 75, "dynamic_degree motion_smoothness": 72}
    for prompts in (None, b"{}[", b'[{"prompt": 1}]'):
        with pytest.raises(UserError, match="VBench_full_info"):
            list(VBench().questions(prompts))


def test_flicker_is_arithmetic() -> None:
    film = np.zeros((4, 8, 8, 3), np.uint8)
    assert flickering(film) == 1
    film[1] = 51
    # differences 51, 51, 0
    assert flickering(film) == pytest.approx((255 - 34) / 255)
    film[:] = 0
    film[::2] = 255
    assert flickering(film) == 0


def test_what_moves() -> None:
    """At a short side of 96 the threshold is 2.25 pixels between frames at 8 a second."""
    assert not moves(panned(0), 8) and not moves(panned(1), 8) and moves(panned(5), 8)
    assert moves(panned(1, 90, 64), 24) == (3 > 6 * 64 / 256)
    still = np.repeat(panned(0, 1), 12, axis=0)
    noisy = np.clip(still + np.random.default_rng(1).normal(0, 2, still.shape), 0, 255).astype(np.uint8)
    assert not moves(noisy, 8) and not moves(still[:1], 8)


def test_steady_motion_is_smooth_and_jumps_are_not() -> None:
    steady = panned(2)
    jumping = steady[[0, 2, 1, 3, 3, 6, 5, 8, 8]]
    assert smoothness(panned(0)) > 0.99999 and smoothness(steady) > 0.985 > smoothness(jumping) + 0.01
    # along the flow it is nearer to the frame between than the mean of its neighbours
    mean = steady[:-2].astype(float) / 2 + steady[2:].astype(float) / 2
    assert smoothness(steady) > 1 - np.abs(mean - steady[1:-1])[::2].mean() / 255
    with pytest.raises(BadRow, match="between"):
        smoothness(steady[:2])


def test_verdicts_and_scores() -> None:
    suite = VBench()
    still, moving = suite.questions(
        json.dumps(
            [
                {"prompt_en": "a toilet, frozen in time", "dimension": ["temporal_flickering"]},
                {"prompt_en": "a person", "dimension": ["human_action"]},
                {"prompt_en": "a horse", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
            ]
        ).encode()
    )
    verdicts = [
        (still, suite.verdict(still, {"frames": panned(0)})),
        (moving, suite.verdict(moving, {"frames": panned(5), "fps": 8.0})),
        (moving, suite.verdict(moving, {"frames": panned(0)})),
    ]
    assert verdicts[0][1] == Verdict(score=1.0, parts={FLICKERING: 1.0})
    judged = [Judged(question=q.prompt, task=q.task, index=i, verdict=v) for i, (q, v) in enumerate(verdicts)]
    scores = suite.scores(judged)
    assert scores[FLICKERING] == 1 and scores[DYNAMIC] == 0.5 and 0.95 < scores[SMOOTHNESS] <= 1
    with pytest.raises(BadRow, match="1 frames"):
        suite.verdict(still, {"frames": panned(0)[:1]})
    with pytest.raises(UserError, match="above 0"):
        VBench(fps=0)


def test_consistency() -> None:
    same = np.tile([[1.0, 2.0]], (4, 1))
    assert consistency(same) == pytest.approx(1)
    # the second frame is at right angles to the first, the third is the first again: (0 + 0) / 2, (0 + 1) / 2
    assert consistency(np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])) == pytest.approx(0.25)
    assert consistency(np.array([[1.0, 0.0], [-1.0, 0.0]])) == 0
    with pytest.raises(BadRow, match="one frame"):
        consistency(same[:1])


def test_consistency_of_films_is_that_of_the_librarys_own_features(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel, ViTModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    film = panned(5, 4, 40)
    clip, encoder = (str(made(tmp_path / made.__name__)) for made in (tiny_models.clip, tiny_models.encoder))
    stage = Verdicts(clip=clip, encoder=encoder)
    with torch.no_grad():
        seen = ViTImageProcessorPil.from_pretrained(encoder)(images=list(film), return_tensors="pt")
        subject = ViTModel.from_pretrained(encoder).eval()(**seen).last_hidden_state[:, 0]
        seen = CLIPImageProcessorPil.from_pretrained(clip)(images=list(film), return_tensors="pt")
        background = CLIPModel.from_pretrained(clip).eval().get_image_features(**seen)
    background = getattr(background, "pooler_output", background)
    prompts = json.dumps([{"prompt_en": "a horse", "dimension": ["subject_consistency", "dynamic_degree"]},
                          {"prompt_en": "a bay", "dimension": ["background_consistency"]}]).encode()  # fmt: skip
    for suite, features, prompt in (
        (SubjectConsistency(), subject, "a horse"),
        (BackgroundConsistency(), background, "a bay"),
    ):
        (question,) = suite.questions(prompts)
        judge = stage._judge(suite.name)
        found, none = judge.evidence([
            Answer(question=question, name="q", index=0, frames=film), Answer(question=question, name="q", index=1),
        ])  # fmt: skip
        assert question.prompt == prompt and isinstance(none, BadRow) and not isinstance(found, BadRow)
        score = suite.verdict(question, found).score
        cosine = torch.nn.functional.cosine_similarity
        before, first = (cosine(features[1:], other, dim=1).clamp(min=0) for other in (features[:-1], features[:1]))
        assert score == pytest.approx(float((before + first).mean() / 2), abs=1e-5) and 0 < score < 1
        judged = [Judged(question="q", task="films", index=0, verdict=Verdict(score=score))]
        assert suite.scores(judged) == {f"{suite.name}[configured]": score}
    with pytest.raises(UserError, match=r"or verdicts\.encoder=DIR"):
        Verdicts()._judge("subject_consistency")
    assert set(stage.settings()["models"]) == {"clip", "encoder", "revision"} and "encoder" not in stage.settings()
