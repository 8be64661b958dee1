"""What a place of a grid said in passes shows: the best code there is of each neighbour, and none that is not said."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.around import NEIGHBOURS, NOBODY, around
from models.embed_around import EmbedAround
from models.tokenizers.scales import passes_of
from tests.models.recipes import batch_in_double, document_of, model_of


@st.composite
def frames(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Grids from one place on, none with fewer rows or columns than the one before."""
    grids = [(1, 1)]
    for _ in range(draw(st.integers(0, 3))):
        rows, columns = grids[-1]
        grids.append((rows + draw(st.integers(0, 4)), columns + draw(st.integers(0, 4))))
    return tuple(dict.fromkeys(grids))


@given(frames(), st.sampled_from([2, 4]))
def test_a_neighbour_is_shown_by_its_own_code_once_said_before_that_by_the_coarser_one_over_it(
    grids: tuple[tuple[int, int], ...], interleave: int
) -> None:
    turn_of: dict[tuple[int, int, int], int] = {}
    for (number, places), (index, slots) in zip(passes_of(grids, interleave), around(grids, interleave), strict=True):
        rows, columns = grids[number]
        before = len(turn_of)
        assert index.shape == slots.shape == (len(places), NEIGHBOURS)
        for place, codes, slot in zip(places.tolist(), index, slots, strict=True):
            for neighbour in range(NEIGHBOURS):
                row, column = place // columns + neighbour // 3 - 1, place % columns + neighbour % 3 - 1
                if not (0 <= row < rows and 0 <= column < columns) or not number:
                    assert slot[neighbour] == NOBODY
                elif (number, row, column) in turn_of:
                    assert slot[neighbour] == NEIGHBOURS + neighbour
                    assert codes[neighbour] == turn_of[number, row, column]
                else:
                    height, width = grids[number - 1]
                    over = number - 1, int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)
                    assert slot[neighbour] == neighbour and codes[neighbour] == turn_of[over]
        turn_of |= {(number, *divmod(place, columns)): before + n for n, place in enumerate(places.tolist())}


def test_every_code_but_those_of_the_last_pass_is_shown_to_a_later_one() -> None:
    grids = ((1, 1), (2, 2), (3, 3), (4, 6))
    shown = [index[slots != NOBODY] for index, slots in around(grids, 2)]
    last = len(passes_of(grids, 2)[-1][1])
    assert set(np.concatenate(shown).tolist()) == set(range(1 + 4 + 9 + 24 - last))


def test_a_code_says_something_else_in_another_slot_and_nothing_beyond_the_edge() -> None:
    torch.manual_seed(0)
    embed, x = EmbedAround(8), torch.randn(1, NEIGHBOURS, 8)
    one = torch.full((1, NEIGHBOURS), NOBODY)
    assert not embed(x, one).any()
    said = [embed(x, one.index_fill(1, torch.tensor([4]), slot)) for slot in (4, 13)]
    assert not torch.allclose(*said)
    others = x.clone()
    others[:, 5:] = 7.0
    assert torch.equal(embed(others, one.index_fill(1, torch.tensor([4]), 13)), said[1])


@torch.no_grad()
def test_a_later_pass_never_changes_an_earlier_one_and_is_changed_by_it() -> None:
    """Told through the documents: tokens in, logits out."""
    model, one = model_of("passes"), document_of("passes", 0, "drawn")
    made, batch = batch_in_double("passes", [one], [0])
    pass_of = np.full(len(made.tokens), -1)
    pass_of[made.scale_at] = made.scales[:, 0]
    before = model.logits(model.hidden(batch)[0])
    passes = [(number, segment) for number, segment in enumerate(one.segments) if segment.kind == "scale"]
    assert len(passes) == 1 + 2 + 4 + 4
    for number, segment in passes[:-1]:
        shown = [*one.shown]
        offset = model.form.vocabulary.visual_offset
        shown[number] = np.append(offset + (shown[number][0] - offset + 1) % 16, shown[number][1:])
        changed = dataclasses.replace(one, shown=shown)
        moved = (model.logits(model.hidden(batch_in_double("passes", [changed], [0])[1])[0]) - before).abs().amax(1)
        of_picture = pass_of >= 0
        assert (moved[of_picture & (pass_of > segment.scale)] > 1e-12).all()
        assert not moved[of_picture & (pass_of <= segment.scale)].any()
