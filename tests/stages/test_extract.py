"""Pre-extraction: the codes of a clip depend on the clip and the tokenizer, not on its neighbours."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.types import UserError
from models.tokenizers.codes import code_type, packed, unpacked
from models.tokenizers.interface import Encoded, load_tokenizer, to_pixels
from stages import extract, frames
from stages.base import BadRow, Row
from stages.extract import Indices, InterleavedIndices
from stages.frames import View
from tests.stages.fake_job import FakeKit, table_of
from tests.stages.shapes_world import png, world
from tests.tokenizers import vq

STAGE = Indices(size=32, frames_per_clip=3)


@pytest.fixture
def side(tmp_path: Path) -> Path:
    vq(codebook_size=40).save(tmp_path)
    return tmp_path


def mixed() -> list[Row]:
    """Clips of many shapes."""
    rows = world(20, 3)[0].to_pylist()
    rng = np.random.default_rng(0)
    for place, row in enumerate(rows[:15]):
        row["media"] = png(rng.integers(0, 256, (40 + 30 * (place % 3), 60 + 20 * (place % 4), 3), dtype=np.uint8))
    return rows


@pytest.mark.parametrize("fit", ["square", "area"])
def test_codes_are_the_same_whatever_the_batches_and_their_order(
    side: Path, fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extract.BATCH_PIXELS, "cpu", 5 * 32 * 32)
    rows = mixed()
    stage = Indices(size=32, frames_per_clip=3, fit=fit)
    tools = stage.setup(FakeKit({"tokenizer": side}))
    together = stage.process(rows, tools)
    order = list(range(len(rows)))
    for size in (1, 4, 7):
        random.Random(size).shuffle(order)
        found: dict[int, object] = {}
        for start in range(0, len(rows), size):
            part = order[start : start + size]
            found |= dict(zip(part, stage.process([rows[i] for i in part], tools), strict=True))
        assert [found[place] for place in range(len(rows))] == together
    if fit == "area":
        assert len({(row[0]["height"], row[0]["width"]) for row in together}) > 3


def test_codes_are_the_tokenizers_and_what_is_stored_is_decoded_as_in_memory(side: Path) -> None:
    rows = world(6, 2)[0].to_pylist()
    tools = STAGE.setup(FakeKit({"tokenizer": side}))
    made = [outcome[0] for outcome in STAGE.process(rows, tools)]
    stored = table_of(made, STAGE.schema, "indices").to_pylist()
    tokenizer = load_tokenizer(side)
    for row, one in zip(rows, stored, strict=True):
        frames_seen = 1 if row["source_kind"] == "image" else 3
        assert one["grids"] == [[frames_seen, 4, 4]] and one["num_frames"] == frames_seen
        assert one["height"] == one["width"] == 32 and one["input_ids"] is None and one["latents"] is None
        assert one["fps"] is None if frames_seen == 1 else one["fps"] == pytest.approx(3.0, rel=0.1)
        view = View(size=32, frames=3)
        pictures = frames.prepare(row["media"], row["source_kind"], row["num_frames"], row["fps"], view).pictures
        encoded = tokenizer.encode(to_pixels(torch.from_numpy(pictures)[None]))
        ids = unpacked(one["ids"], one["codebook_size"])
        assert ids.tolist() == encoded.ids[0].tolist() and len(one["ids"]) == ids.size  # one byte a code
        from_store = Encoded(grids=tuple(map(tuple, one["grids"])), ids=torch.from_numpy(ids)[None])
        assert torch.equal(tokenizer.decode(from_store), tokenizer.decode(encoded))
        assert one["tokenizer"] == tools.digest == tokenizer.digest() and one["held_out"] == row["held_out"]


def test_codes_take_the_smallest_integers_that_hold_them() -> None:
    rng = np.random.default_rng(0)
    for size, width in ((2, 1), (256, 1), (257, 2), (16_384, 2), (32_768, 2), (65_536, 2), (131_072, 4)):
        ids = rng.integers(0, size, 50)
        ids[0] = size - 1
        assert code_type(size).itemsize == width and len(packed(ids, size)) == 50 * width
        assert unpacked(packed(ids, size), size).tolist() == ids.tolist()
        with pytest.raises(ValueError, match=f"the codebook has {size}"):
            packed(np.array([size]), size)


def test_a_clip_that_does_not_decode_is_a_bad_row_and_its_neighbours_are_not(side: Path) -> None:
    rows = world(2, 0)[0].to_pylist()
    rows[0]["media"] = b"junk"
    bad, good = STAGE.process(rows, STAGE.setup(FakeKit({"tokenizer": side})))
    assert isinstance(bad, BadRow) and len(good) == 1


def test_a_size_that_does_not_fit_the_tokenizer_is_refused_before_any_row(side: Path) -> None:
    with pytest.raises(UserError, match=r"indices.size is 36: a code of this tokenizer stands for 8 pixels"):
        Indices(size=36).setup(FakeKit({"tokenizer": side}))


def test_frames_of_interleaved_samples_are_encoded_as_pictures_by_themselves(side: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [png(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    stage = InterleavedIndices(size=32)
    given = {"texts": ["a", "b"], "held_out": True, "key": b"k" * 16, "label": "x"}
    whole, broken = stage.process(
        [given | {"frames": pictures}, given | {"frames": [pictures[0], b"no picture", pictures[1]]}],
        stage.setup(FakeKit({"tokenizer": side})),
    )
    assert isinstance(broken, BadRow)
    (row,) = whole
    table_of([row], InterleavedIndices.schema, "interleaved_indices")
    alone = Indices(size=32, frames_per_clip=1)
    still = {"source_kind": "image", "num_frames": 1, "fps": None, "held_out": True}
    expected = alone.process([still | {"media": one} for one in pictures], alone.setup(FakeKit({"tokenizer": side})))
    assert [p["ids"] for p in row["pictures"]] == [one[0]["ids"] for one in expected]
    assert row["texts"] == ["a", "b"] and row["held_out"]
