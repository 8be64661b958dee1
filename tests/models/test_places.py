"""What is derived from typed segments: counts, inputs, targets, positions, weights, by hand and by law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from models.layout import Format, Layout, Picture, document, spans
from models.places import NO_GROUP, blended, places, tokens_of
from models.raster import Marks
from models.tokenizers.scales import NEXTFLOW, aspects, grids_of, num_places, scale_weights
from models.tokenizers.text import ByteTokenizer
from models.vocabulary import Vocabulary
from tests.models.recipes import KINDS, NAMES, PLAIN, SCALES, document_of, places_of

TEXT = ByteTokenizer()


def scales_format(alpha: float = 0.0, codes: int = 4096) -> Format:
    layout = Layout(vision="scales", marks=PLAIN, scale_alpha=alpha)
    return Format(layout=layout, vocabulary=Vocabulary.compact(256, codes))


def square(last: int) -> Picture:
    grids = tuple((1, side, side) for side in NEXTFLOW[:last])
    count = sum(h * w for _, h, w in grids)
    return Picture(grids=grids, ids=np.arange(count) % 4096)


@pytest.mark.parametrize(("last", "codes"), [(12, 900), (16, 3684), (18, 10_084)])
def test_a_next_scale_picture_has_a_place_for_each_code_but_the_first(last: int, codes: int) -> None:
    made = places(tokens_of([document([[65] * 128, square(last)], scales_format(), TEXT)]))
    assert len(made.scale_at) == codes - 1
    assert made.lengths == [1 + 128 + 1 + codes - 1 + 1 + 1]
    assert (made.targets[made.scale_at] >= 264).all() and (made.said[made.scale_at] >= 0).all()


def test_pairs_of_a_next_scale_picture_are_those_of_the_literature_notes() -> None:
    """model-recipes 2.2: 128 tokens of text, 18 scales: A = 64,324,374 with S = 10,211."""
    from models import flops

    made = document([[65] * 126, square(18)], scales_format(), TEXT)
    both = spans(made.segments)[:-2]  # their picture has no end and their text no EOS
    assert sum(length for length, _ in both) == 10_211 and flops.segment_pairs(both) == 64_324_374


def test_a_document_of_scales_by_hand() -> None:
    v = scales_format(codes=16).vocabulary
    o, boi = v.visual_offset, v.boi
    grids = ((1, 1, 1), (1, 1, 2), (1, 2, 2))
    shown = np.array([9, 8, 7, 0, 0, 0, 0])
    picture = Picture(grids=grids, ids=np.arange(7), input_ids=shown)
    one = document([[65], picture, [66]], scales_format(codes=16), TEXT)
    made = places(tokens_of([one]), span=8.0)
    assert made.tokens[:3].tolist() == [v.bos, 65, boi] and made.tokens[-3:].tolist() == [v.eoi, 66, v.eos]
    assert made.targets.tolist() == [65, boi, o, *(o + i for i in range(1, 7)), 66, v.eos, 0]
    assert made.codes[0].tolist() == [o + 9] * 4  # both places of 1x2 show the 1x1, as it is shown, not as it is
    assert set(made.codes[2:].ravel()) == {o + 8, o + 7}
    assert made.scales.tolist() == [[1, 3]] * 2 + [[2, 3]] * 4
    assert made.groups.tolist() == [-1, -1, -1, 1, 1, 2, 2, 2, 2, -1, -1, -1]
    half = 8 / 2**0.5
    assert made.positions[:3, 0].tolist() == [0, 1, 2] and made.positions[-3:].tolist() == [[n] * 3 for n in (3, 4, 5)]
    assert np.allclose(made.positions[3:5], [[half / 2, half / 2, 1], [half / 2, half * 1.5, 1]])
    assert np.allclose(made.positions[5:9, :2], [[2, 2], [2, 6], [6, 2], [6, 6]])
    assert made.line.tolist() == list(range(12))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NAMES), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.integers(0, 9))
def test_documents_end_to_end_are_each_by_itself_with_other_group_numbers(
    name: str, kinds: list[str], seed: int
) -> None:
    documents = [document_of(name, seed + n, kind) for n, kind in enumerate(kinds)]
    whole, alone = places_of(name, documents), [places_of(name, [one]) for one in documents]
    assert whole.lengths == [made.lengths[0] for made in alone]
    for field in ("tokens", "targets", "weights", "positions", "line", "codes", "roles", "scales"):
        assert np.array_equal(getattr(whole, field), np.concatenate([getattr(made, field) for made in alone])), field
    grouped = whole.groups[whole.groups != NO_GROUP]
    assert (np.diff(grouped) >= 0).all()
    assert whole.lengths == [sum(n for n, _ in spans(one.segments)) for one in documents]
    predicted = whole.said[whole.said >= 0]
    assert len(np.unique(predicted)) == len(predicted), "a token is predicted twice"


@settings(deadline=None, max_examples=60)
@given(*[st.tuples(st.integers(1, 9), st.integers(1, 9))] * 2)
def test_a_coarse_grid_is_blended_as_torch_interpolates(before: tuple[int, int], now: tuple[int, int]) -> None:
    values = torch.randn(before, dtype=torch.float64)
    wanted = interpolate(values[None, None], size=now, mode="bilinear", align_corners=False)[0, 0]
    index, share = blended(before, now)
    found = (values.ravel().numpy()[index] * share).sum(1)
    assert np.allclose(found, wanted.ravel().numpy(), atol=1e-6) and np.allclose(share.sum(1), 1)


def test_scale_weights_keep_the_sum_and_have_the_published_shares() -> None:
    """model-recipes 1.5: 344 to 0.193; the 64x64's share falls from 0.406 to 0.078."""
    made = document([square(18)], scales_format(alpha=0.9), TEXT)
    _, _, weights = made.joined()
    assert weights.sum() == pytest.approx(10_084 + 2, rel=1e-6)  # with boi and EOS
    of_codes = np.concatenate([w for w, s in zip(made.weights, made.segments, strict=True) if s.kind == "scale"])
    assert of_codes[0] == pytest.approx(344, abs=0.5) and of_codes[-1] == pytest.approx(0.193, abs=5e-4)
    assert of_codes[-64 * 64 :].sum() / of_codes.sum() == pytest.approx(0.078, abs=5e-4)
    assert of_codes[0] / of_codes.sum() == pytest.approx(0.034, abs=5e-4)


def test_every_aspect_ratio_begins_at_one_place_and_keeps_the_weight_of_its_picture() -> None:
    for sides in aspects(64):
        grids = grids_of(NEXTFLOW, *sides)
        assert grids[0] == (1, 1) and grids[-1] == sides
        weights = scale_weights(grids, 0.9)
        total = sum(w * h * c for w, (h, c) in zip(weights, grids, strict=True))
        assert total == pytest.approx(num_places(grids))


@pytest.mark.parametrize(
    ("supervise", "drawn", "read"),
    [("all", {"text", "codes", "marks"}, {"text", "codes", "marks"}), ("vision", {"codes"}, {"codes"}),
     ("last", {"codes", "marks"}, {"text"})],
)  # fmt: skip
def test_the_supervised_set_is_the_recipes(supervise, drawn, read) -> None:
    """All; visual codes alone (Emu3's fine-tuning); the last part alone (answers: Chameleon, Janus, NextFlow)."""
    form = Format(
        layout=Layout(vision="codes", marks=Marks(), supervise=supervise), vocabulary=Vocabulary.compact(256, 9)
    )
    picture = Picture(grids=((1, 2, 2),), ids=np.arange(4))
    for parts, wanted in (([[65, 66], picture], drawn), ([picture, [65, 66]], read)):
        made = document(parts, form, TEXT)
        body = list(zip(made.weights, made.segments, strict=True))[1:-1]
        assert {s.kind for w, s in body if w.any()} == wanted
        codes = next(w for w, s in body if s.kind == "codes")
        if supervise == "vision":
            assert np.count_nonzero(codes) == 4


def test_the_first_scale_must_be_one_place() -> None:
    with pytest.raises(ValueError, match="one place"):
        document([Picture(grids=((1, 2, 2), (1, 3, 3)), ids=np.arange(13))], scales_format(), TEXT)


def test_self_correction_shows_inputs_and_predicts_targets() -> None:
    ids = np.arange(sum(h * w for h, w in SCALES)) % 16
    grids = tuple((1, *sides) for sides in SCALES)
    plain = document([[65], Picture(grids=grids, ids=ids)], scales_format(), TEXT)
    same = document([[65], Picture(grids=grids, ids=ids, input_ids=ids)], scales_format(), TEXT)
    other = document([[65], Picture(grids=grids, ids=ids, input_ids=(ids + 1) % 16)], scales_format(), TEXT)
    a, b, c = (places_of("nextflow", [one]) for one in (plain, same, other))
    assert np.array_equal(a.codes, b.codes) and np.array_equal(a.targets, b.targets)
    assert np.array_equal(a.targets, c.targets) and not np.array_equal(a.codes, c.codes)
