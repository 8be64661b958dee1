"""Distances of sets of pictures: closed form, and nothing called FID without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.types import BadRow, UserError
from stages.evaluate.judge import Answer
from stages.evaluate.judge_features import InceptionFeatures, Pixels
from stages.evaluate.suite import Judged, Question, Verdict
from stages.evaluate.suite_pictures import Fid, PixelFrechet


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
