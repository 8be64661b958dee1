"""Training the vision tokenizer: resumes to the same weights, never trains on held-out clips, names what fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.tokenizers.vq import load_vq
from stages import frames
from stages.base import BadRow
from stages.tokenizer import Tokenizer
from tests.stages.fake_job import FakeJob
from tests.stages.shapes_world import world

STAGE = Tokenizer(size=32, codebook_size=32, width=8, steps=30, batch=8, checkpoint_every=10)


class KilledError(Exception):
    """The process died here."""


@pytest.fixture(scope="module")
def clips() -> pa.Table:
    torch.set_num_threads(1)
    return world(18, 2)[0]


def _weights(job: FakeJob) -> dict[str, torch.Tensor]:
    last = job.checkpoints.latest()
    assert last is not None
    with job.checkpoints.fetch(last) as folder:
        return load_vq(folder).state_dict()


def test_one_row_of_the_final_checkpoint_with_quality_on_held_out_frames(tmp_path: Path, clips: pa.Table) -> None:
    job = FakeJob(tmp_path, {"clips": clips})
    (row,) = STAGE.run(job)
    assert row["step"] == 30 and row["codebook_size"] == 32
    assert pa.Table.from_pylist([row], STAGE.schema).num_rows == 1
    assert job.summaries["frames"] == 16 + 2 * 4 and job.summaries["heldout_frames"] == 2
    assert row["psnr"] == job.summaries["psnr"] > 5
    assert job.pictures["reconstructions"].startswith(b"\x89PNG")
    assert [one.step for one in job.checkpoints.all()] == [10, 20, 30]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, clips: pa.Table) -> None:
    whole = FakeJob(tmp_path / "whole", {"clips": clips})
    list(STAGE.run(whole))
    broken = FakeJob(tmp_path / "broken", {"clips": clips})

    def die_at_25(done: int, total: int, what: str) -> None:
        if what == "tokenizer steps" and done == 20:
            raise KilledError

    broken.progress = die_at_25  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        list(STAGE.run(broken))
    again = FakeJob(tmp_path / "broken", {"clips": clips.take(list(reversed(range(20))))})
    list(STAGE.run(again))
    assert all(torch.equal(value, _weights(again)[name]) for name, value in _weights(whole).items())


def test_a_finished_run_trains_nothing(tmp_path: Path, clips: pa.Table) -> None:
    job = FakeJob(tmp_path, {"clips": clips})
    first = list(STAGE.run(job))
    again = FakeJob(tmp_path, {"clips": clips})
    assert list(STAGE.run(again)) == first and not again.logged


def test_what_does_not_decode_is_rejected_with_the_reason(tmp_path: Path, clips: pa.Table) -> None:
    rows = clips.to_pylist()
    rows[1]["media"], rows[19]["media"] = b"no picture", b"no film"
    job = FakeJob(tmp_path, {"clips": pa.Table.from_pylist(rows, clips.schema)})
    list(STAGE.run(job))
    assert set(job.rejected) == {rows[1]["key"], rows[19]["key"]}
    assert all("cannot be decoded" in reason for reason in job.rejected.values())


def test_nothing_but_held_out_clips_gives_no_row(tmp_path: Path, clips: pa.Table) -> None:
    assert list(STAGE.run(FakeJob(tmp_path, {"clips": clips.slice(0, 1)}))) == []


def test_frames_are_square_and_spread_over_the_clip(clips: pa.Table) -> None:
    film = clips.to_pylist()[-1]
    four = frames.prepare(film["media"], "video", 4, 32)
    assert four.shape == (4, 32, 32, 3) and four.dtype == np.uint8
    all_of_them = frames.prepare(film["media"], "video", 24, 32)
    assert np.array_equal(four, all_of_them[[3, 9, 15, 21]])
    with pytest.raises(BadRow, match="source file"):
        frames.prepare(b"", "image", 1, 32)
