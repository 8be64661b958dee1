"""Training the vision tokenizer: resumes to the same weights, on any number of workers, never on held-out clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from infra.types import UserError
from models.tokenizers.interface import load_tokenizer
from stages.base import Training
from stages.tokenizer import learner, loop
from stages.tokenizer.samples import Samples
from stages.tokenizer.tokenizer import Tokenizer
from stages.workers.pulse import Pulse
from tests.stages.fake_job import FakeJob, FakeReader
from tests.stages.shapes_world import world
from tests.tokenizers import vq_shape

STAGE = Tokenizer(
    shape=vq_shape(32), phases={"all": 30}, size=32, frames_per_clip=4, batch=8, checkpoint_every=10, learning_rate=3e-3
)


class KilledError(Exception):
    """The process died here."""


@dataclass
class Ear:
    """Stands where the actor between workers and driver stands."""

    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    blamed: str = ""
    notes: list[str] = field(default_factory=list)
    dies_at: int = 10**9
    """The step whose losses are the last that is heard."""
    dies_saving: int = 10**9
    """The save, counted from 1, before which the process dies: all saves before it are published."""
    num_saves: int = 0

    @property
    def blame(self) -> Any:
        return self

    @property
    def note(self) -> Any:
        return SimpleNamespace(remote=self.notes.append)

    @property
    def add(self) -> Any:
        return self

    @property
    def show(self) -> Any:
        return self

    def remote(self, *said: Any) -> None:
        if said and isinstance(said[0], int):
            if said[0] >= self.dies_at:
                raise KilledError
            self.steps.append((said[0], said[1]))
        elif len(said) == 1:
            self.blamed = said[0]
        elif said:
            self.pictures[said[0]] = said[1]
            self.num_saves += 1
            if self.num_saves >= self.dies_saving:
                raise KilledError


@pytest.fixture(scope="module")
def clips() -> pa.Table:
    torch.set_num_threads(1)
    return world(18, 2)[0]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One worker in this process."""
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(stage: Tokenizer, job: FakeJob, *, every: int = 5, pulse: type[Pulse] = Pulse, ear: Ear | None = None) -> Ear:
    ear = ear or Ear()
    config = {
        "stage": stage,
        "clips": job.reader("clips"),
        "checkpoints": job.checkpoints,
        "sink": ear,
        "pulse": pulse(ear, 0),
        "training": Training(),
    }
    loop.train_worker(config | {"log_every": every})
    return ear


def weights(job: FakeJob) -> dict[str, torch.Tensor]:
    last = job.checkpoints.latest()
    assert last is not None
    with job.checkpoints.fetch(last) as folder:
        return load_tokenizer(folder).state_dict()


def test_a_row_of_the_final_checkpoint_with_quality_on_held_out_frames(
    tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    job = FakeJob(tmp_path, {"clips": clips})
    ear = train(STAGE, job)
    (row,) = STAGE.run(job)  # nothing is left to train: no Ray is asked for
    assert row["step"] == 30 and row["codebook_size"] == 32 and row["kind"] == "vq"
    assert pa.Table.from_pylist([row], STAGE.schema).num_rows == 1
    assert job.summaries["clips"] == 18 and job.summaries["heldout_clips"] == 2
    assert row["psnr"] == job.summaries["psnr"] > 5 and 0 < row["ssim"] <= 1 and 0 < row["usage"] <= 1
    assert ear.pictures["reconstructions"].startswith(b"\x89PNG")
    assert [one.step for one in job.checkpoints.all()] == [10, 20, 30]
    assert [step for step, _ in ear.steps] == [5, 10, 15, 20, 25, 30]
    assert {"l1", "l2", "commitment", "error", "perplexity", "usage", "lr"} <= set(ear.steps[0][1])


def test_a_killed_run_goes_on_to_the_same_weights_whatever_the_order_in_storage(
    tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    whole = FakeJob(tmp_path / "whole", {"clips": clips})
    train(STAGE, whole)
    broken = FakeJob(tmp_path / "broken", {"clips": clips})
    with pytest.raises(KilledError):
        train(STAGE, broken, ear=Ear(dies_at=25))
    again = FakeJob(tmp_path / "broken", {"clips": clips.take(list(reversed(range(20))))})
    train(STAGE, again)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_what_does_not_decode_is_rejected_with_the_reason_and_others_take_its_place(
    tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    rows = clips.to_pylist()
    rows[1]["media"], rows[19]["media"] = b"no picture", b"no film"
    job = FakeJob(tmp_path, {"clips": pa.Table.from_pylist(rows, clips.schema)})
    train(STAGE, job)
    list(STAGE.run(job))
    assert set(job.rejected) == {rows[1]["key"], rows[19]["key"]}
    assert all("cannot be decoded" in reason for reason in job.rejected.values())


def damage(folder: Path, name: str) -> None:
    """Flip a bit of the newest file of this name."""
    path = max(folder.rglob(name), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["optimizer.safetensors", "tokenizer.safetensors"])
def test_a_damaged_file_is_set_aside_and_training_goes_on_from_the_checkpoint_before_to_the_same_weights(
    file: str, tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    stage = dataclasses.replace(STAGE, phases={"all": 6}, checkpoint_every=2, batch=4)
    whole, broken = (FakeJob(tmp_path / name, {"clips": clips}) for name in ("whole", "broken"))
    train(stage, whole)
    with pytest.raises(KilledError):
        train(stage, broken, every=1, ear=Ear(dies_saving=3))
    assert [one.step for one in broken.checkpoints.all()] == [2, 4]
    damage(tmp_path / "broken", file)
    ear = train(stage, broken, every=1)
    (note,) = ear.notes
    assert f"{file} is damaged" in note and "step 4 is left out, training goes on from the one before" in note
    assert [step for step, _ in ear.steps] == [3, 4, 5, 6] and not ear.blamed
    assert [one.step for one in broken.checkpoints.all()] == [2, 4, 6]
    rows = [next(iter(stage.run(job))) for job in (whole, broken)]
    assert rows[0]["files_sha256"] == rows[1]["files_sha256"]


class Wish(Pulse):
    """Hears the wish to stop in a certain step."""

    stops_at = 13

    def wish(self) -> float:
        return float(self._now[0] >= self.stops_at)


def test_a_stopped_run_saves_its_step_and_goes_on_to_the_same_weights_and_row(
    tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    whole, stopped = (FakeJob(tmp_path / name, {"clips": clips}) for name in ("whole", "stopped"))
    train(STAGE, whole)
    train(STAGE, stopped, pulse=Wish)
    last = stopped.checkpoints.latest()
    assert last is not None and last.step == Wish.stops_at and "psnr" not in last.facts
    ear = train(STAGE, stopped, every=1)
    assert ear.steps[0][0] == Wish.stops_at + 1
    assert all(torch.equal(value, weights(stopped)[name]) for name, value in weights(whole).items())
    rows = [next(iter(STAGE.run(job))) for job in (whole, stopped)]
    assert rows[0]["files_sha256"] == rows[1]["files_sha256"] and rows[0]["psnr"] == rows[1]["psnr"]


def test_an_error_that_is_no_number_names_rank_step_and_clip(
    tmp_path: Path, clips: pa.Table, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.get", lambda said: said)
    real = loop.to_pixels

    def poisoned(pixels: torch.Tensor) -> torch.Tensor:
        found = real(pixels)
        found[3] = torch.nan
        return found

    monkeypatch.setattr(loop, "to_pixels", poisoned)
    job = FakeJob(tmp_path, {"clips": clips})
    ear = train(STAGE, job)
    samples = Samples(FakeReader(clips), STAGE, (1, 8))
    key = clips["key"][samples.batch(0, 0, 1).rows[3]].as_py().hex()[:12]
    assert ear.blamed.startswith("the error of step 1 is not finite, rank 0, ") and f"why --row {key}" in ear.blamed
    assert job.checkpoints.latest() is None


def test_nothing_but_held_out_clips_gives_no_row(tmp_path: Path, clips: pa.Table) -> None:
    assert list(STAGE.run(FakeJob(tmp_path, {"clips": clips.slice(0, 1)}))) == []


@dataclass(frozen=True)
class CountingReader(FakeReader):
    """Remembers of which rows the media were read."""

    read: set[int] = field(default_factory=set)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        self.read.update(rows if "media" in columns else ())
        return super().take(rows, columns)


def test_samples_are_a_function_of_the_step_and_no_held_out_clip_is_one(clips: pa.Table) -> None:
    reader = CountingReader(clips)
    samples = Samples(reader, STAGE, (1, 8))
    whole = [samples.batch(step, 0, 1).pixels for step in range(12)]
    assert not any(clips["held_out"][row].as_py() for row in reader.read) and len(reader.read) > 10
    for world_size in (2, 4):
        parts = Samples(FakeReader(clips), STAGE, (1, 8))
        for step in (3, 7):
            shares = [parts.batch(step, rank, world_size).pixels for rank in range(world_size)]
            assert np.array_equal(np.stack(shares, 1).reshape(whole[step].shape), whole[step])


def test_a_sample_of_a_film_is_neighbouring_frames_and_a_still_is_repeated(clips: pa.Table) -> None:
    stage = dataclasses.replace(STAGE, frames_per_sample=2, frames_per_clip=4)
    samples = Samples(FakeReader(clips), stage, (2, 8))
    batch = np.concatenate([samples.batch(step, 0, 1).pixels for step in range(10)])
    assert batch.shape == (80, 2, 32, 32, 3)
    stills = [np.array_equal(one[0], one[1]) for one in batch]
    assert 0 < sum(stills) < 80
    with pytest.raises(UserError, match="give a multiple of the 4 frames that"):
        Samples(FakeReader(clips), stage, (4, 8))


@pytest.mark.slow
def test_two_workers_train_the_tokenizer_of_one(tmp_path: Path, clips: pa.Table, alone: None, ray) -> None:
    jobs = [FakeJob(tmp_path / str(n), {"clips": clips}, num_workers=n) for n in (1, 2)]
    train(STAGE, jobs[0])  # of the one, in this process, nothing is left for Ray
    for job in jobs:
        (row,) = STAGE.run(job)
        assert row["step"] == 30
    assert jobs[1].pictures["reconstructions"] and jobs[1].logged
    one, two = (weights(job) for job in jobs)
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=2e-3), name
    assert jobs[0].summaries["psnr"] == pytest.approx(jobs[1].summaries["psnr"], abs=0.05)


def test_latents_of_workers_come_in_the_order_of_the_samples(tmp_path: Path) -> None:
    assert torch.equal(learner.in_order(torch.arange(6).view(3, 2), 1), torch.arange(6).view(3, 2))


def test_wrong_phases_and_missing_weights_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"tokenizer.phases has joint=3: a tokenizer of kind vq has steps for all"):
        dataclasses.replace(STAGE, phases={"joint": 3})
    with pytest.raises(UserError, match=r"write tokenizer.phases.all=NUMBER"):
        dataclasses.replace(STAGE, phases={"all": 0})
    with pytest.raises(UserError, match=r"write tokenizer.lpips_weights=DIR"):
        dataclasses.replace(STAGE, lpips=1.0)


def test_a_patch_discriminator_and_lpips_join_the_training_and_resume_with_it(
    tmp_path: Path, clips: pa.Table, alone: None
) -> None:
    from tests.models.test_losses import random_weights

    folder = random_weights(tmp_path / "weights")
    stage = dataclasses.replace(
        STAGE, phases={"all": 6}, batch=2, checkpoint_every=3, gan=0.5, gan_from=2, lpips=1.0,
        lpips_weights=str(folder), max_measured=1,
    )  # fmt: skip
    whole = FakeJob(tmp_path / "whole", {"clips": clips})
    (ear, row) = train(stage, whole, every=1), next(iter(stage.run(whole)))
    assert "lpips" in ear.steps[0][1] and "gan" not in ear.steps[1][1] and {"gan", "judge"} <= set(ear.steps[2][1])
    assert row["step"] == 6 and whole.summaries["lpips"] > 0
    broken = FakeJob(tmp_path / "broken", {"clips": clips})
    with pytest.raises(KilledError):
        train(stage, broken, every=1, ear=Ear(dies_at=5))
    train(stage, broken, every=1)
    assert all(torch.equal(value, weights(broken)[name]) for name, value in weights(whole).items())
