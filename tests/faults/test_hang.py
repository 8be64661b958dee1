"""A training that hangs, is told to stop, or loses a process says so and ends with the curve of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from infra.types import StoppedError
from stages.base import Row, Training
from stages.workers.fit import fit
from tests.conftest import REPO
from tests.stages.fake_job import FakeJob, FakeReader
from tests.stages.test_train import STAGE, loader_of, packs  # noqa: F401 - a fixture

STEPS = 8
DISTURBED_AT = 6


@dataclass(frozen=True)
class SlowReader(FakeReader):
    """Takes its time, and never comes back the first time that a row is read behind a checkpoint, as a store that
    hangs."""

    step_s: float
    fatal_row: int
    scratch: Path

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if "tokens" in columns:
            time.sleep(self.step_s)
        saved, mark = any((self.scratch / "checkpoints").glob("*.json")), self.scratch / "blocked"
        if self.fatal_row in rows and "tokens" in columns and saved and not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().take(rows, columns)


@dataclass(frozen=True)
class DyingReader(FakeReader):
    """Kills the worker that reads a row for the first time, as the kernel would."""

    fatal_row: int
    mark: Path

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if self.fatal_row in rows and "tokens" in columns and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().take(rows, columns)


@dataclass
class DyingJob(FakeJob):
    """Hands out a reader that kills the second rank once."""

    fatal_row: int = -1

    def reader(self, dataset: str) -> FakeReader:
        return DyingReader(self.tables[dataset], self.fatal_row, self.scratch / "died")


@dataclass
class SlowJob(FakeJob):
    step_s: float = 0.0
    fatal_row: int = -1

    def reader(self, dataset: str) -> FakeReader:
        return SlowReader(self.tables[dataset], self.step_s, self.fatal_row, self.scratch)


@dataclass
class StoppedJob(SlowJob):
    """Is asked to stop, once, when it has heard of a step behind the first checkpoint."""

    stopped: bool = False

    def stopping(self) -> bool:
        self.stopped |= any(step > STAGE.checkpoint_every for step, _ in self.logged)
        return self.stopped


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, packs: pa.Table, ray) -> tuple[list[Row], dict[int, Any]]:  # noqa: F811
    """Rows and curve of a training of the model that nobody disturbed."""
    job = FakeJob(tmp_path_factory.mktemp("calm"), {"packs": packs}, num_workers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.train.train.LOG_EVERY", 1)
        rows = list(STAGE.run(job))
    return rows, {step: metrics["loss"] for step, metrics in job.logged}


def as_published(rows: Sequence[Row]) -> list[Row]:
    """What two trainings must have in common: the manifest names the folder of its writer."""
    return [{k: v for k, v in row.items() if not k.startswith("manifest")} for row in rows]


@pytest.mark.slow
def test_a_killed_worker_changes_neither_curve_nor_model_and_what_is_trained_is_not_trained_again(
    tmp_path: Path,
    packs: pa.Table,  # noqa: F811
    calm: tuple[list[Row], dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.train.train.LOG_EVERY", 1)
    fatal = loader_of(packs, 4).rows(DISTURBED_AT)[1]
    near = Training(ahead=1)  # read in advance, but not before step 4 is saved
    job = DyingJob(tmp_path, {"packs": packs}, num_workers=2, training=near, fatal_row=fatal)
    rows = list(STAGE.run(job))
    assert (tmp_path / "died").exists() and [row["step"] for row in rows] == [4, 8, 10]
    assert pa.Table.from_pylist(rows, STAGE.schema).num_rows == 3
    assert {step: metrics["loss"] for step, metrics in job.logged} == calm[1]
    assert calm[1][10] < calm[1][1], "it learns nothing, so nothing is shown"
    assert as_published(rows) == as_published(calm[0])  # with the digests of the model's files
    again = FakeJob(tmp_path, {"packs": packs})
    assert list(STAGE.run(again)) == rows and not again.logged


@pytest.mark.slow
def test_a_rank_whose_data_never_comes_is_named_with_its_packs_and_training_goes_on(
    tmp_path: Path,
    packs: pa.Table,  # noqa: F811
    calm: tuple[list[Row], dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.train.train.LOG_EVERY", 1)
    monkeypatch.setenv("PLAIT_HANG_S", "3")
    row = loader_of(packs, 4).rows(7)[1]  # read in advance, but not before step 4 is saved
    near = Training(ahead=2)
    job = SlowJob(tmp_path, {"packs": packs}, num_workers=2, training=near, step_s=0.3, fatal_row=row)
    rows = list(STAGE.run(job))
    (said,) = job.notes
    assert "no step has moved for 3 s: rank 1 (" in said and "is loading in step 8 for" in said
    assert packs["key"][row].as_py().hex()[:12] in said and "plait why --row" in said
    assert said.endswith("all ranks are ended and start again from step 4")
    assert {step: metrics["loss"] for step, metrics in job.logged} == calm[1]
    assert as_published(rows) == as_published(calm[0])


@pytest.mark.slow
def test_a_wish_to_stop_saves_the_step_and_the_same_command_goes_on_to_the_same_rows(
    tmp_path: Path,
    packs: pa.Table,  # noqa: F811
    calm: tuple[list[Row], dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.train.train.LOG_EVERY", 1)
    job = StoppedJob(tmp_path, {"packs": packs}, num_workers=2, step_s=0.6)
    with pytest.raises(StoppedError):
        list(STAGE.run(job))
    assert not [t for t in threading.enumerate() if t.name == "ray-train"], "its workers went on"
    last = job.checkpoints.latest()
    assert last is not None and STAGE.checkpoint_every < last.step < STAGE.steps
    assert job.progressed[-1] == (last.step, STAGE.steps, "stopped")
    again = FakeJob(tmp_path, {"packs": packs}, num_workers=2)
    rows = list(STAGE.run(again))
    assert min(step for step, _ in again.logged) == last.step + 1
    assert again.logged and all(metrics["loss"] == calm[1][step] for step, metrics in [*job.logged, *again.logged])
    assert as_published(rows) == as_published(calm[0])


@pytest.mark.slow
def test_a_driver_killed_in_mid_training_and_the_next_one_have_the_curve_of_an_undisturbed_one(
    tmp_path: Path,
    packs: pa.Table,  # noqa: F811
    calm: tuple[list[Row], dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
    ray,
) -> None:
    """Every step's loss and count of tokens is that of its packs, so none is read twice and none is left out."""
    monkeypatch.setattr("stages.train.train.LOG_EVERY", 1)
    with pa.OSFile(str(tmp_path / "packs.arrow"), "wb") as sink, pa.ipc.new_file(sink, packs.schema) as writer:
        writer.write_table(packs)
    environment = os.environ | {"PYTHONPATH": str(REPO), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (tmp_path / "said").open("w") as said:
        command = [sys.executable, "-m", "tests.faults.killed_driver", str(tmp_path)]
        driver = subprocess.Popen(command, cwd=REPO, env=environment, stdout=said, stderr=said)
    heard, deadline = tmp_path / "heard", time.monotonic() + 240
    while not (any((tmp_path / "checkpoints").glob("*.json")) and heard.exists()):
        assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()[-1500:]
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    before = dict(json.loads(line) for line in heard.read_text().splitlines())
    again = FakeJob(tmp_path, {"packs": packs}, num_workers=2)
    rows = list(STAGE.run(again))
    after = dict(again.logged)
    went_on = min(after)
    assert went_on in (STAGE.checkpoint_every + 1, 2 * STAGE.checkpoint_every + 1), "it began anew"
    assert set(before) | set(after) == set(calm[1]) and went_on <= max(before) + 1
    for step, metrics in [*before.items(), *after.items()]:
        assert metrics["loss"] == calm[1][step], step
    assert as_published(rows) == as_published(calm[0])  # with the count of tokens of every checkpoint


def counting(config: dict[str, Any]) -> None:
    """The skeleton of a training loop, on numbers; rank 1 sends itself a signal, once, in the sixth step."""
    import torch
    import torch.distributed as dist

    pulse, checkpoints, mark = config["pulse"], config["checkpoints"], Path(config["mark"])
    rank, last, stops = dist.get_rank(), checkpoints.latest(), 0.0
    step, total = (0, 0.0) if last is None else (last.step, last.facts["total"])
    while step < STEPS and not stops:
        pulse.at(step + 1, "loading")
        if rank == 1 and step + 1 == DISTURBED_AT and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), config["signal"])
        time.sleep(config["step_s"])
        pulse.at(step + 1, "computing")
        dist.all_reduce(sums := torch.tensor([rank + step + 1.0, pulse.wish()], dtype=torch.float64))
        step, total, stops = step + 1, total / 2 + float(sums[0]), float(sums[1])
        if rank == 0:
            config["sink"].add.remote(step, {"loss": total})
        if step % 4 == 0 or stops:
            if rank == 0:
                with tempfile.TemporaryDirectory() as folder:
                    checkpoints.save(step, Path(folder), {"total": total})
            dist.barrier()


def count(job: FakeJob, number: int = 0, step_s: float = 0.1) -> None:
    """`counting` on two workers, one of which gets a signal; what it logged is as if nothing had been."""
    mark = str(job.scratch / "mark")
    config = {"checkpoints": job.checkpoints, "mark": mark, "signal": number, "step_s": step_s}
    fit(job, counting, config, name="counting", workers=2, steps=STEPS, said=lambda metrics: str(metrics["loss"]))
    totals = [0.0]
    for step in range(STEPS):
        totals.append(totals[-1] / 2 + 2 * step + 3)
    assert dict(job.logged) == {step: {"loss": totals[step]} for step in range(1, STEPS + 1)}
    assert len(job.logged) <= STEPS + 2, "more was made twice than lay behind the last checkpoint"


@pytest.mark.slow
def test_a_stopped_process_is_named_as_silent_and_ends(tmp_path: Path, ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_HANG_S", "6")
    count(job := FakeJob(tmp_path), signal.SIGSTOP)
    (said,) = job.notes
    assert "rank 1 (" in said and "is silent for" in said and "stopped or stuck in native code" in said
    assert said.endswith("start again from step 4") and "rank 0" not in said
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int((tmp_path / "mark").read_text())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not psutil.pid_exists(int((tmp_path / "mark").read_text())), "it still holds its memory"


@pytest.mark.slow
def test_sigterm_to_a_worker_saves_its_step_and_training_goes_on_from_there(tmp_path: Path, ray) -> None:
    count(job := FakeJob(tmp_path), signal.SIGTERM)
    (said,) = job.notes
    pid = (tmp_path / "mark").read_text()
    assert f"process {pid}) got SIGTERM: what was done is saved, training goes on from step" in said
    saved = [one.step for one in job.checkpoints.all()]
    assert DISTURBED_AT in saved or DISTURBED_AT + 1 in saved
    assert len(job.logged) == STEPS, "no step was made twice"
