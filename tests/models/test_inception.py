"""FID: the graph by its published names and shapes, the distance by closed form and by scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from models.inception import FEATURES, Inception, frechet_distance, load_inception


def _published_convolutions() -> dict[str, tuple[int, int, int, int]]:
    """Name and shape (out, in, high, wide) of every convolution, by the table of Szegedy et al. (1512.00567)."""
    shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1), "Conv2d_4a_3x3": (192, 80, 3, 3),
    }  # fmt: skip
    for name, n, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        own = {"branch1x1": (64, n, 1, 1), "branch5x5_1": (48, n, 1, 1), "branch5x5_2": (64, 48, 5, 5),
               "branch3x3dbl_1": (64, n, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
               "branch_pool": (pool, n, 1, 1)}  # fmt: skip
        shapes |= {f"{name}.{key}": shape for key, shape in own.items()}
    own = {"branch3x3": (384, 288, 3, 3), "branch3x3dbl_1": (64, 288, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3),
           "branch3x3dbl_3": (96, 96, 3, 3)}  # fmt: skip
    shapes |= {f"Mixed_6a.{key}": shape for key, shape in own.items()}
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        own = {"branch1x1": (192, 768, 1, 1), "branch7x7_1": (c, 768, 1, 1), "branch7x7_2": (c, c, 1, 7),
               "branch7x7_3": (192, c, 7, 1), "branch7x7dbl_1": (c, 768, 1, 1), "branch7x7dbl_2": (c, c, 7, 1),
               "branch7x7dbl_3": (c, c, 1, 7), "branch7x7dbl_4": (c, c, 7, 1), "branch7x7dbl_5": (192, c, 1, 7),
               "branch_pool": (192, 768, 1, 1)}  # fmt: skip
        shapes |= {f"{name}.{key}": shape for key, shape in own.items()}
    own = {"branch3x3_1": (192, 768, 1, 1), "branch3x3_2": (320, 192, 3, 3), "branch7x7x3_1": (192, 768, 1, 1),
           "branch7x7x3_2": (192, 192, 1, 7), "branch7x7x3_3": (192, 192, 7, 1),
           "branch7x7x3_4": (192, 192, 3, 3)}  # fmt: skip
    shapes |= {f"Mixed_7a.{key}": shape for key, shape in own.items()}
    for name, n in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        own = {"branch1x1": (320, n, 1, 1), "branch3x3_1": (384, n, 1, 1), "branch3x3_2a": (384, 384, 1, 3),
               "branch3x3_2b": (384, 384, 3, 1), "branch3x3dbl_1": (448, n, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3),
               "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1),
               "branch_pool": (192, n, 1, 1)}  # fmt: skip
        shapes |= {f"{name}.{key}": shape for key, shape in own.items()}
    return shapes


def test_every_entry_of_the_state_dict_has_the_published_name_and_shape() -> None:
    convolutions = _published_convolutions()
    assert len(convolutions) == 94
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (1008, FEATURES), "fc.bias": (1008,)}
    for name, shape in convolutions.items():
        expected[f"{name}.conv.weight"] = shape
        expected |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        expected[f"{name}.bn.num_batches_tracked"] = ()
    assert {name: tuple(value.shape) for name, value in Inception().state_dict().items()} == expected


@pytest.mark.slow
def test_frames_of_any_size_have_their_own_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Inception().state_dict(), tmp_path / "inception.safetensors")
    inception = load_inception(tmp_path / "inception.safetensors")
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)
    found = inception.features(frames)
    assert found.shape == (3, FEATURES) and np.isfinite(found).all() and found.std(0).max() > 0
    assert np.allclose(inception.features(frames[1:2]), found[1:2], rtol=1e-4, atol=1e-6)


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inception\.pth is no safetensors file"):
        load_inception(tmp_path / "inception.pth")
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_inception(tmp_path / "other.safetensors")


@pytest.mark.parametrize("frames", [5, 300])
def test_equal_sets_have_no_distance_and_a_shift_its_square(frames: int) -> None:
    features = np.random.default_rng(0).normal(size=(frames, 12))
    shift = np.linspace(-1, 2, 12)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(features, features + shift) == pytest.approx(np.square(shift).sum(), rel=1e-10)


def test_gaussians_scaled_along_their_axes_have_the_closed_form() -> None:
    """Covariances with the same axes: the sum over axes of (deviation_1 - deviation_2)^2, and the shift."""
    rng = np.random.default_rng(1)
    white = rng.normal(size=(400, 9))
    white -= white.mean(0)
    white = np.linalg.qr(white)[0] * np.sqrt(399)  # exactly white: covariance over n - 1 is the identity
    one, other, shift = rng.uniform(0.5, 3, 9), rng.uniform(0.5, 3, 9), rng.normal(size=9)
    expected = np.square(one - other).sum() + np.square(shift).sum()
    assert frechet_distance(white * one, white * other + shift) == pytest.approx(expected, rel=1e-10)


def test_distance_equals_that_by_scipys_matrix_root() -> None:
    rng = np.random.default_rng(2)
    one, other = (rng.normal(size=(n, 20)) @ rng.normal(size=(20, 20)) for n in (300, 90))
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
