"""Distances of sets of pictures: closed form, and nothing called FID without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.types import BadRow, UserError
from stages.evaluate.judge import Answer
from stages.evaluate.judge_features import ClipFeatures, InceptionFeatures, Pixels
from stages.evaluate.suite import Judged, Question, Verdict
from stages.evaluate.suite_clip import ClipScore
from stages.evaluate.suite_pictures import Fid, PixelFrechet, kernel_distance
from stages.evaluate.verdicts import Verdicts
from tests.stages import tiny_models


def judged(features: np.ndarray) -> list[Judged]:
    return [
        Judged(question=f"{i:04}", task="pictures", index=0, verdict=Verdict(score=float("nan")), features=row)
        for i, row in enumerate(features.astype(np.float32))
    ]


def test_the_distance_of_shifted_pictures(tmp_path: Path) -> None:
    true = np.random.default_rng(0).random((50, 12)).astype(np.float32)
    np.save(tmp_path / "true.npy", true)
    suite = PixelFrechet(reference=str(tmp_path / "true.npy"))
    assert suite.scores(judged(true))["frechet[pixels-16]"] == pytest.approx(0, abs=1e-6)
    # equal covariances: what is left is the squared distance of the means
    assert suite.scores(judged(true + 1))["frechet[pixels-16]"] == pytest.approx(12, rel=1e-4)
    assert suite.scores(judged(true[:1])) == {} and Fid.main == "fid"
    with pytest.raises(UserError, match="use one judge"):
        suite.scores(judged(true[:, :5]))


def test_references_that_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(4))
    for place, match in (("none.npy", "cannot be read"), ("flat.npy", "shape")):
        with pytest.raises(UserError, match=match):
            PixelFrechet(reference=str(tmp_path / place)).scores(judged(np.ones((3, 4))))


def test_pixels_are_means() -> None:
    question = Question(prompt="p", task="pictures")
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[:, :, 16:] = 255
    answers = [Answer(question=question, name="p", index=0, frames=frames) for frames in (picture, None)]
    found = Pixels().evidence(answers)
    assert not isinstance(found[0], BadRow) and found[0]["image"].shape == (768,)
    assert found[0]["image"].reshape(16, 16, 3)[:, :8].max() == 0 and found[0]["image"].mean() == 0.5
    assert isinstance(found[1], BadRow)


def test_no_fid_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Inception"):
        InceptionFeatures(str(tmp_path / "none.safetensors"))


def test_the_kernel_distance_is_that_of_its_definition_and_0_on_the_average() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(9, 5)), rng.normal(0.4, 1.2, size=(9, 5))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 5 + 1) ** 3)

    pairs = [(i, j) for i in range(9) for j in range(9)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (9 * 8)
    across = sum(k(x[i], y[j]) for i, j in pairs) / 81
    assert kernel_distance(x, y) == pytest.approx(within - 2 * across, rel=1e-12)
    equal = [kernel_distance(rng.normal(size=(60, 5)), rng.normal(size=(60, 5))) for _ in range(60)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / 60**0.5
    true, drawn = rng.normal(size=(1500, 5)), rng.normal(1.0, 1, size=(1200, 5))
    whole = [kernel_distance(true[start : start + 400], drawn[start : start + 400]) for start in (0, 400, 800)]
    assert kernel_distance(true, drawn) == pytest.approx(np.mean(whole), rel=0.15)


def test_clip_scores_are_those_of_the_librarys_own_embeddings(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tiny_models.clip(tmp_path / "clip")
    rng = np.random.default_rng(0)
    prompts = ["a red circle", "two blue stars on a grey background"]
    pictures = [rng.integers(0, 256, (1, 40, 30, 3), dtype=np.uint8) for _ in prompts]
    suite, judge = ClipScore(), ClipFeatures(str(folder))
    questions = list(suite.questions("\n".join(prompts).encode()))
    answers = [
        Answer(question=one, name=one.prompt, index=0, frames=frames)
        for one, frames in zip(questions, pictures, strict=True)
    ]
    found = judge.evidence([*answers, Answer(question=questions[0], name="none", index=0)])
    assert isinstance(found[-1], BadRow)
    model, tokens = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    see = CLIPImageProcessorPil.from_pretrained(folder)
    for question, frames, evidence in zip(questions, pictures, found, strict=False):
        with torch.no_grad():
            given = {**tokens([question.prompt], return_tensors="pt"), **see(images=[frames[0]], return_tensors="pt")}
            told = model(**given)
        cosine = float(told.logits_per_image.detach() / model.logit_scale.detach().exp())
        assert not isinstance(evidence, BadRow)
        assert suite.verdict(question, evidence).score == pytest.approx(max(0.0, 100 * cosine), abs=1e-3)
    assert judge.name.startswith("clip-") and len(judge.name) == 13
    keys = [Verdicts(clip=place).settings() for place in (None, str(folder))]
    assert keys[0] != keys[1] and str(folder) not in str(keys[1])
    with pytest.raises(UserError, match=r"or verdicts\.clip=DIR"):
        Verdicts()._judge("clip_score")
