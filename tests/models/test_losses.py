"""LPIPS computes its formula from given weights, and asks for them; the discriminator learns to tell pictures apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.tokenizers.losses import Lpips, PatchDiscriminator, hinge_loss

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLED_BEFORE = (5, 10, 17, 24)
READ_AFTER = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("lpips"))


def random_weights(root: Path) -> Path:
    """Random weights under the published names: the formula is tested, no distance is reported."""
    root.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for place, a, b in zip(PLACES, WIDTHS[:-1], WIDTHS[1:], strict=True):
        state[f"features.{place}.weight"] = torch.randn(b, a, 3, 3, generator=generator) * (2 / (9 * a)) ** 0.5
        state[f"features.{place}.bias"] = torch.randn(b, generator=generator) * 0.1
    save_file(state, root / "vgg16.safetensors")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator)
             for i, c in enumerate((64, 128, 256, 512, 512))}  # fmt: skip
    torch.save(heads, root / "vgg.pth")
    return root


def test_lpips_is_its_formula(folder: Path) -> None:
    lpips = Lpips(folder)
    torch.manual_seed(1)
    one, other = torch.rand(2, 3, 32, 40) * 2 - 1, torch.rand(2, 3, 32, 40) * 2 - 1
    from safetensors.torch import load_file

    state, heads = load_file(folder / "vgg16.safetensors"), torch.load(folder / "vgg.pth", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        x, found = (x - shift[None, :, None, None]) / scale[None, :, None, None], []
        for place in PLACES:
            if place in POOLED_BEFORE:
                x = torch.max_pool2d(x, 2)
            x = torch.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1).clamp(0)
            if place in READ_AFTER:
                found.append(x)
        return found

    for i in range(2):
        expected = 0.0
        for level, (a, b) in enumerate(zip(features(one[i : i + 1]), features(other[i : i + 1]), strict=True)):
            w = heads[f"lin{level}.model.1.weight"].flatten()
            places = [(y, x) for y in range(a.shape[2]) for x in range(a.shape[3])]
            for y, x in places:
                u, v = a[0, :, y, x], b[0, :, y, x]
                expected += float((w * (u / u.norm() - v / v.norm()) ** 2).sum()) / len(places)
        assert float(lpips(one, other)[i]) == pytest.approx(expected, rel=1e-4)
    assert lpips(one, one).abs().max() == 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_lpips_without_weights_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"LPIPS needs vgg16.safetensors or vgg16.pth in .*: put the published"):
        Lpips(tmp_path)


def test_hinge_loss_is_zero_where_both_are_told_apart_and_one_where_nothing_is_known() -> None:
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert hinge_loss(torch.zeros(4), torch.zeros(4)) == 1


def test_the_discriminator_learns_and_judges_each_picture_alone() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    real = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, size=32, mode="bilinear")
    painted = real + 0.2 * torch.randn_like(real)
    first = None
    for _ in range(30):
        loss = hinge_loss(judge(real), judge(painted))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert torch.allclose(judge(real)[:1], judge(real[:1]), atol=1e-5)
