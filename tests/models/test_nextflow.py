"""NextFlow's tokenizer: one index for two branches, residual scales that add up, self-correction, three phases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

from models.tokenizers import multiscale, shapes
from models.tokenizers.interface import SHAPE_FILE, load_tokenizer
from models.tokenizers.nextflow import NextFlowTokenizer, kept_scales
from models.tokenizers.scales import NEXTFLOW, grids_of
from models.tokenizers.shapes import NextFlowShape, TowerShape

SHAPE = NextFlowShape(
    kind="nextflow", pixel=TowerShape(patch=4, width=8, multipliers=(1, 2), blocks=1, norm_groups=0),
    scales=(1, 2, 3, 4), codebook_size=40, semantic_dim=3, pixel_dim=5, semantic_width=16, semantic_layers=1,
    semantic_heads=2, pixel_weight=0.7, correction_top_k=5,
)  # fmt: skip


def made(seed: int = 0, **settings) -> NextFlowTokenizer:
    torch.manual_seed(seed)
    tokenizer = NextFlowTokenizer(dataclasses.replace(SHAPE, **settings)).eval()
    with torch.no_grad():
        for book in (tokenizer.semantic_book, tokenizer.pixel_book):
            book.weight.normal_(0, 0.3)
    return tokenizer


def pictures(n: int = 3, t: int = 1, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(n, t, 3, height, width) * 2 - 1


@pytest.mark.parametrize("normalised", [True, False])
def test_the_index_is_the_row_with_the_least_weighted_sum_of_both_distances(normalised: bool) -> None:
    tokenizer, latents = made(normalised=normalised), torch.randn(30, 8)
    for latent, found in zip(latents, tokenizer.nearest(latents).tolist(), strict=True):
        sums = []
        for row in range(40):
            parts = [latent[:3], latent[3:]], [tokenizer.semantic_book.weight[row], tokenizer.pixel_book.weight[row]]
            if normalised:
                parts = tuple([one / one.norm() for one in pair] for pair in parts)
            meant, seen = (float((a - b).square().sum()) for a, b in zip(*parts, strict=True))
            sums.append(meant + 0.7 * seen)
        assert sums[found] == pytest.approx(min(sums), abs=1e-6)


def test_the_pixel_phase_goes_by_the_pixel_distance_alone() -> None:
    tokenizer, latents = made(normalised=False), torch.randn(30, 8)
    tokenizer.phase("pixel")
    expected = torch.cdist(latents[:, 3:], tokenizer.pixel_book.weight.detach()).argmin(1)
    assert torch.equal(tokenizer.nearest(latents), expected)
    assert tokenizer.lookup(torch.tensor([3]))[0, :3].abs().sum() == 0


def test_what_all_scales_add_is_what_is_decoded() -> None:
    tokenizer, pixels = made(), pictures()
    encoded = tokenizer.encode(pixels)
    assert encoded.grids == ((1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4)) and encoded.ids.shape == (3, 30)
    with torch.no_grad():
        latent = tokenizer.latent(pixels[:, 0])
        sides = [grid[1:] for grid in encoded.grids]
        scales = list(multiscale.quantised(latent, sides, tokenizer.nearest, tokenizer.lookup))
        added = list(multiscale.parts(encoded.ids, sides, (4, 4), tokenizer.lookup))
        assert torch.allclose(sum(added), scales[-1].total_NDHW, atol=1e-6)
        for place in range(1, 5):
            assert torch.allclose(sum(added[:place]), scales[place - 1].total_NDHW, atol=1e-6)
        left = latent - sum(added[:3])
        assert torch.equal(tokenizer.nearest(left.permute(0, 2, 3, 1).flatten(0, 2)).view(3, -1), encoded.ids[:, 14:])
        painted = tokenizer.decoder(scales[-1].total_NDHW).clamp(-1, 1)
        assert torch.allclose(tokenizer.decode(encoded)[:, 0], painted, atol=1e-6)


def test_the_gradient_passes_the_scales_straight() -> None:
    tokenizer, pixels = made(scale_drop=0.0, commitment=0.0), pictures(2)
    latent = tokenizer.latent(pixels[:, 0]).detach().requires_grad_()
    total = list(multiscale.quantised(latent, [(1, 1), (4, 4)], tokenizer.nearest, tokenizer.lookup))[-1].total_NDHW
    straight = latent + (total - latent).detach()
    target = torch.randn_like(straight)
    mse_loss(straight, target).backward()
    assert torch.allclose(latent.grad, 2 * (total.detach() - target) / target.numel(), atol=1e-7)
    tokenizer.phase("joint")
    painted = tokenizer(pixels, 0)
    mse_loss(painted.pixels, pixels).backward()
    assert tokenizer.pixel[1].weight.grad.abs().sum() > 0 and tokenizer.semantic_out.weight.grad.abs().sum() > 0


def test_half_of_the_scales_are_dropped_and_never_the_finest() -> None:
    sides = grids_of(NEXTFLOW, 64, 64)
    kept = [kept_scales(sides, 0.5, seed) for seed in range(400)]
    assert all(one[-1] == (64, 64) for one in kept)
    assert sum(len(one) - 1 for one in kept) / (400 * 17) == pytest.approx(0.5, abs=0.03)
    assert kept_scales(sides, 0.5, 7) == kept_scales(sides, 0.5, 7) and kept_scales(sides, 0.0, 7) == list(sides)


def priced(**settings) -> NextFlowTokenizer:
    """A tokenizer whose second row is dear: it was hardly ever used."""
    tokenizer = made(codebook="ema", normalised=False, rate=1.0, codebook_size=2, **settings)
    tokenizer.phase("pixel")
    tokenizer.pixel_book.error.fill_(1.0)
    tokenizer.pixel_book.counts.copy_(torch.tensor([100.0, 1.0]))
    with torch.no_grad():
        tokenizer.pixel_book.weight.copy_(torch.eye(2, 5))
    return tokenizer


def test_a_price_weighs_less_where_a_code_stands_for_many_places() -> None:
    tokenizer = priced()
    price = tokenizer.pixel_book.price()
    dearer = float(price[1] - price[0])
    assert dearer == pytest.approx(4.6, abs=0.05)  # ln 100
    for share in (1.0, 0.25):
        even = (
            share * dearer / (2 * 0.7)
        )  # weighted distances to the two rows differ by 0.7 * 2 * what is seen of the second
        latents = torch.zeros(2, 8)
        latents[:, 4] = torch.tensor([even - 0.01, even + 0.01])
        assert tokenizer.nearest(latents, share).tolist() == [0, 1]
    shares = [multiscale.share_of(sides, (4, 4)) for sides in grids_of((1, 2, 3, 4), 4, 4)]
    assert shares == [1 / 16, 1 / 4, 9 / 16, 1.0]


def test_self_correction_draws_by_what_the_target_was_chosen_by() -> None:
    """Where codes have a price, the one that is taken is the first of the few, though another one is nearer."""
    tokenizer, pixels = priced(correction_share=1.0, correction_temperature=1e-6, correction_top_k=2), pictures(8)
    found = tokenizer.encode(pixels)
    assert torch.equal(found.input_ids, found.ids)


def test_sizes_that_came_later_are_in_no_identity_while_they_stand_at_what_went_before() -> None:
    """Or every tokenizer of an earlier version would be another one, and all that hangs on it would be made again."""
    before = shapes.plain(SHAPE)
    assert not {"rate", "restart", "residual"} & before.keys()
    assert shapes.plain(dataclasses.replace(SHAPE, residual=False)) == before | {"residual": False}


@torch.no_grad()
def test_without_residuals_a_scale_says_the_whole_and_the_finest_alone_is_decoded() -> None:
    tokenizer, pixels = made(residual=False, correction_share=0.0), pictures()
    found = tokenizer.encode(pixels)
    latent, finest = tokenizer.latent(pixels[:, 0]), tokenizer.scales(1, 32, 32)[-1]
    count = finest[0] * finest[1]
    flat_MD = latent.permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(found.ids[:, -count:].flatten(), tokenizer.nearest(flat_MD))
    shown = tokenizer.decode(found)
    other = dataclasses.replace(found, ids=torch.cat(((found.ids[:, :-count] + 1) % 40, found.ids[:, -count:]), 1))
    assert torch.equal(tokenizer.decode(other), shown)
    assert shapes.plain(tokenizer.shape) == shapes.plain(made(correction_share=0.0).shape) | {"residual": False}


def test_self_correction_changes_inputs_only_and_for_the_stated_share() -> None:
    pixels = pictures(16)
    plain, corrected = made(correction_share=0.0).encode(pixels), made(correction_share=0.6).encode(pixels)
    assert plain.input_ids is None and torch.equal(plain.ids, corrected.ids)
    assert corrected.input_ids is not None
    hot = made(correction_share=0.6, correction_temperature=1e6, correction_top_k=40).encode(pixels)
    differ = float((hot.input_ids != hot.ids).double().mean())
    assert differ == pytest.approx(0.6 * 39 / 40, abs=0.06)  # one draw in 40 is the target itself
    cold = made(correction_share=1.0, correction_temperature=1e-6).encode(pixels)
    assert torch.equal(cold.input_ids, cold.ids)


def test_inputs_are_drawn_among_the_nearest_by_their_distance() -> None:
    distances = torch.tensor([[0.0, 1.0, 2.0, 50.0]]).repeat(6000, 1)
    ids = torch.zeros(6000, dtype=torch.long)
    near, codes = distances.topk(3, dim=1, largest=False)
    drawn = multiscale.drawn_inputs(near, codes, ids, share=1.0, temperature=1.0, salt=b"")
    expected = torch.softmax(-torch.tensor([0.0, 1.0, 2.0]), 0)
    assert torch.allclose(torch.bincount(drawn, minlength=4)[:3] / 6000, expected, atol=0.02) and drawn.max() == 2


def test_what_a_picture_gets_does_not_depend_on_its_neighbours() -> None:
    tokenizer, pixels = made(), pictures(6)
    together = tokenizer.encode(pixels)
    order = [4, 0, 5, 2, 1, 3]
    other = tokenizer.encode(pixels[order])
    assert torch.equal(other.ids, together.ids[order]) and torch.equal(other.input_ids, together.input_ids[order])


def test_films_and_other_shapes_go_through() -> None:
    tokenizer = made()
    for t, height, width in ((1, 16, 64), (2, 40, 24), (3, 32, 32)):
        pixels = pictures(2, t, height, width)
        encoded = tokenizer.encode(pixels)
        assert encoded.grids == tokenizer.grids(t, height, width)
        assert encoded.grids[-1] == (1, height // 8, width // 8)
        assert sum(a * b * c for a, b, c in encoded.grids) == encoded.ids.shape[1]
        assert tokenizer.decode(encoded).shape == pixels.shape
    film = pictures(1, 2)
    both, second = tokenizer.encode(film), tokenizer.encode(film[:, 1:])
    assert torch.equal(both.ids[:, 30:], second.ids)


def test_each_phase_trains_its_part_and_the_decoder_is_doubled_once() -> None:
    tokenizer, pixels = made(), pictures(2)

    def trained() -> set[str]:
        return {name.partition(".")[0] for name, p in tokenizer.named_parameters() if p.requires_grad}

    tokenizer.phase("pixel")
    assert trained() == {"pixel", "pixel_book", "decoder"}
    tokenizer.phase("joint")
    semantic = {"semantic", "semantic_out", "semantic_decoder", "semantic_book"}
    assert trained() == {"pixel", "pixel_book", "decoder"} | semantic
    before, size = tokenizer.decode(tokenizer.encode(pixels)), sum(1 for _ in tokenizer.decoder)
    tokenizer.phase("decoder")
    assert trained() == {"decoder"} and sum(1 for _ in tokenizer.decoder) == size + 2
    assert torch.allclose(tokenizer.decode(tokenizer.encode(pixels)), before, atol=1e-6)
    again = sum(1 for _ in tokenizer.decoder)
    tokenizer.phase("decoder")
    assert sum(1 for _ in tokenizer.decoder) == again
    painted = tokenizer(pixels, 0)
    assert tokenizer.learn(painted.latents.flatten(0, 1), painted.codes.flatten(), 0) == 0
    with pytest.raises(ValueError, match="use pixel, joint or decoder"):
        tokenizer.phase("last")


@pytest.mark.parametrize("phases", [("pixel",), ("pixel", "joint"), ("joint", "decoder")])
def test_saved_and_loaded_is_the_same_in_every_phase(phases: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer, pixels = made(), pictures(2)
    for phase in phases:
        tokenizer.phase(phase)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    one, two = tokenizer.encode(pixels), again.encode(pixels)
    assert again.digest() == tokenizer.digest() and again.shape == tokenizer.shape
    assert torch.equal(one.ids, two.ids) and torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(tokenizer.decode(one), again.decode(two))


@pytest.mark.parametrize("tower", [True, False])
def test_a_size_of_another_version_is_one_sentence(tower: bool, tmp_path: Path) -> None:
    made().save(tmp_path)
    shape = json.loads((tmp_path / SHAPE_FILE).read_text())
    (shape["pixel"] if tower else shape)["scale_cut"] = 0.4
    (tmp_path / SHAPE_FILE).write_text(json.dumps(shape))
    with pytest.raises(ValueError, match="has scale_cut, which this version does not know: train it again"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_a_siglip_teacher_starts_the_branch_and_stays_as_it_was(version: int, tmp_path: Path) -> None:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    if version == 1:
        model = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8))
    else:
        model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=16, patch_size=8))
    model.save_pretrained(tmp_path / "siglip")
    tokenizer = made(teacher=str(tmp_path / "siglip"), codebook="ema")
    tokenizer.phase("joint")
    pixels = pictures(2, 1, 32, 48)
    with torch.no_grad():
        features = tokenizer.teacher(pixels[:, 0])
        assert features.shape == (2, 16, 4, 6)
        if version == 1:
            given = {"pixel_values": pixels[:, 0], "interpolate_pos_encoding": True}
        else:
            patches = pixels[:, 0].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 24, 192)
            given = {
                "pixel_values": patches, "pixel_attention_mask": torch.ones(2, 24, dtype=torch.long),
                "spatial_shapes": torch.tensor([[4, 6]] * 2),
            }  # fmt: skip
        expected = model.eval()(**given).last_hidden_state
        assert torch.allclose(features, expected.transpose(1, 2).unflatten(2, (4, 6)), atol=1e-5)
    before = {n: t.clone() for n, t in tokenizer.named_parameters()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], lr=1e-2)
    painted = tokenizer(pixels, 0)
    (mse_loss(painted.pixels, pixels) + sum(painted.terms.values())).backward()
    optimizer.step()
    moved = {n.partition(".")[0] for n, t in tokenizer.named_parameters() if not torch.equal(t, before[n])}
    assert {"semantic", "semantic_out", "semantic_decoder", "pixel", "decoder"} == moved
    (tmp_path / "saved").mkdir()
    tokenizer.eval().save(tmp_path / "saved")
    (tmp_path / "siglip").rename(tmp_path / "gone")
    again = load_tokenizer(tmp_path / "saved")
    assert again.digest() == tokenizer.digest()
    assert torch.equal(again.encode(pixels).ids, tokenizer.encode(pixels).ids)


def test_dead_rows_restart_in_both_codebooks_together() -> None:
    tokenizer = made(codebook="ema", dead_below=0.5, decay=0.5)
    tokenizer.phase("joint")
    latents, codes = torch.randn(60, 8), torch.zeros(60, dtype=torch.long)
    assert tokenizer.learn(latents, codes, 0) == 40
    for row in range(40):
        both = torch.cat((tokenizer.semantic_book.weight[row], tokenizer.pixel_book.weight[row]))
        assert (latents == both).all(1).any()
