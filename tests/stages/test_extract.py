"""Pre-extraction: the codes of a clip depend on the clip and the tokenizer, not on its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.tokenizers.vq import VqConfig, VqTokenizer, to_pixels
from stages import frames
from stages.base import BadRow
from stages.extract import Indices
from tests.stages.fake_job import FakeKit, table_of
from tests.stages.shapes_world import world


@pytest.fixture
def side(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = VqTokenizer(VqConfig(size=32, frames=3, codebook_size=40, code_dim=4, width=8, blocks=1))
    tokenizer.codebook.normal_()
    tokenizer.save(tmp_path)
    return tmp_path


def test_codes_do_not_depend_on_batching_and_equal_the_tokenizers(side: Path) -> None:
    rows = world(6, 2)[0].to_pylist()
    stage = Indices()
    tools = stage.setup(FakeKit({"tokenizer": side}))
    together = stage.process(rows, tools)
    alone = [stage.process([row], tools)[0] for row in reversed(rows)][::-1]
    assert together == alone
    for row, outcome in zip(rows, together, strict=True):
        (made,) = outcome
        assert (made["grid_t"], made["grid_h"], made["grid_w"]) == (1 if row["source_kind"] == "image" else 3, 4, 4)
        pixels = to_pixels(torch.from_numpy(frames.prepare(row["media"], row["source_kind"], 3, 32)))
        assert made["ids"] == tools.tokenizer.encode(pixels).flatten().tolist()
        assert made["tokenizer"] == tools.digest and made["held_out"] == row["held_out"]
    table = table_of([one for outcome in together for one in outcome], stage.schema, "indices")
    assert np.array_equal(table.column("codebook_size").to_numpy(), [40] * 8)


def test_a_clip_that_does_not_decode_is_a_bad_row(side: Path) -> None:
    rows = world(2, 0)[0].to_pylist()
    rows[0]["media"] = b"junk"
    stage = Indices()
    bad, good = stage.process(rows, stage.setup(FakeKit({"tokenizer": side})))
    assert isinstance(bad, BadRow) and len(good) == 1
