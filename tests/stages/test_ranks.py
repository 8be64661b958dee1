"""However ranks, ZeRO, passes and sequence ranks share the work, whoever goes on with it: one curve, one model."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from models.any_to_any import AnyToAny, load_model
from stages.base import Training
from stages.train.checkpoint import TRAINER_FILE
from stages.train.stream import Stream
from tests.conftest import REPO
from tests.stages import test_pack_recipes as recipes
from tests.stages.fake_job import FakeReader, checkpoints_of, table_of
from tests.stages.test_train import STAGE, loader_of, packs  # noqa: F401 - a fixture

RUN = dataclasses.replace(STAGE, steps=9, checkpoint_every=4, learning_rate=2e-2)
PHASED = dataclasses.replace(
    STAGE, steps=7, global_batch=2, phases={"small": 4, "large": 3}, warmup=0, schedule="constant",
    phase_learning_rates={"small": 1e-3, "large": 1e-4},
)  # fmt: skip
SHARED_S = 240


def stored(table: pa.Table, path: Path) -> str:
    """Where the ranks read packs; the file's name."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path.name


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Packs of two phases."""
    phases = {"small": recipes.Phase(size=16, video=False), "large": recipes.Phase(size=32)}
    given = recipes.tables("features", sizes=(16, 32))
    rows, _ = recipes.pack(tmp_path_factory.mktemp("phases"), given, recipes.stage(phases=phases))
    return table_of(rows, recipes.Packs.schema, "packs")


def run(folder: Path, world: int, plan: Sequence[dict[str, Any]]) -> None:
    """So many processes do the plan."""
    (folder / f"plan-{world}.pickle").write_bytes(pickle.dumps(list(plan)))
    environment = os.environ | {"PYTHONPATH": str(REPO), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.stages.train_ranks", str(folder)]
    logs = [(folder / f"log-{world}-{rank}").open("w") for rank in range(world)]
    ranks = [
        subprocess.Popen([*command, str(n), str(world)], env=environment, cwd=REPO, stdout=log, stderr=log)
        for n, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(SHARED_S) for rank in ranks]
        assert codes == [0] * world, [Path(log.name).read_text()[-1500:] for log in logs]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            log.close()


def item(name: str, where: str | None = None, training: Training = Training(), **more: Any) -> dict[str, Any]:  # noqa: B008
    return {"name": name, "where": where or name, "stage": more.pop("stage", RUN), "training": training, **more}


def damage(folder: Path) -> None:
    """Flip a byte of the newest optimizer file."""
    path = sorted(folder.rglob("optimizer-*.safetensors"), key=lambda p: p.stat().st_mtime)[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def small_disk(folder: Path) -> bool:
    """A disk of its own below this folder, on which one checkpoint has room and two have not; whether it could be."""
    folder.mkdir()
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(folder)], check=False, capture_output=True
    ).returncode


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory,
    packs: pa.Table,  # noqa: F811
    phased: pa.Table,
    request: pytest.FixtureRequest,
) -> Path:
    """Everything that the tests below look at, made by three groups of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    stored(packs, folder / "packs.arrow")
    zero = [Training(zero=z) for z in (0, 1, 2, 3)]
    bf16 = dataclasses.replace(RUN, precision="bf16")
    each = dataclasses.replace(RUN, steps=4, checkpoint_every=1)
    frozen = dataclasses.replace(RUN, steps=4, checkpoint_every=2, frozen=("trunk.blocks.0.*", "*norm*"))
    spiky = dataclasses.replace(RUN, steps=80, checkpoint_every=70, spike_sigma=-50.0)  # any step is a spike after 64
    full = [item("full", training=zero[2]), item("full-again", "full", zero[2])] if small_disk(folder / "full") else []
    request.addfinalizer(lambda: subprocess.run(["umount", str(folder / "full")], check=False, capture_output=True))
    run(folder, 2, [
        item("two-zero2", training=zero[2]),
        item("two-zero3-passes", training=Training(zero=3, packs_per_pass=1, recompute=True)),
        item("bf16-2", training=zero[2], stage=bf16),
        item("chain-a", "chain", zero[3], stop_at=6),
        item("bf16-chain-a", "bf16-chain", zero[3], stage=bf16, stop_at=6),
        item("damaged-a", "damaged", zero[2]),
        item("damaged-b", "damaged", zero[2], stage=dataclasses.replace(RUN, steps=10), before=damage),
        item("winner", "race", zero[2]),
        item("poisoned", training=zero[2], poisoned=loader_of(packs, 4).rows(1)[1], stage=each),
        item("healed", "poisoned", zero[2], stage=each),
        *full,
    ])  # fmt: skip
    run(folder, 4, [
        item("four-zero1", training=zero[1]),
        item("four-zero3-ulysses", training=Training(zero=3, sequence_ranks=2)),
        item("chain-b", "chain", Training(zero=2, sequence_ranks=2, packs_per_pass=1), stop_at=7),
        item("bf16-chain-b", "bf16-chain", zero[1], stage=bf16, stop_at=7),
    ])  # fmt: skip
    run(folder, 1, [
        item("one", training=zero[0], profile=True),
        item("chain-c", "chain", zero[0]),
        item("bf16-chain-c", "bf16-chain", zero[2], stage=bf16),
        item("kept", stage=dataclasses.replace(RUN, keep=1, checkpoint_every=2)),
        item("spiky", stage=spiky),
        item("phases", stage=PHASED, packs=stored(phased, folder / "phased.arrow")),
        item("frozen", stage=frozen),
        item("frozen-again", "frozen", stage=dataclasses.replace(frozen, steps=6)),
    ])  # fmt: skip
    return folder


def of(folder: Path, *names: str) -> dict[int, dict[str, float]]:
    """What these trainings, one going on with the other, told of their steps."""
    found: dict[int, dict[str, float]] = {}
    for name in names:
        steps = json.loads((folder / f"{name}.json").read_text())["steps"]
        assert not set(map(int, steps)) & set(found), "a step was made twice"
        found |= {int(step): metrics for step, metrics in steps.items()}
    return found


def model_at(folder: Path, where: str, step: int) -> AnyToAny:
    checkpoints = checkpoints_of(folder / where)
    (found,) = [one for one in checkpoints.all() if one.step == step]
    with checkpoints.fetch(found) as local:
        return load_model(local)[0]


SAME = ["two-zero2", "two-zero3-passes", "four-zero1", "four-zero3-ulysses"]
SUMS = ("loss", "loss/text", "loss/vision", "lr", "grad_norm", "tokens_seen", "skipped")


@pytest.mark.slow
@pytest.mark.parametrize("names", [[name] for name in SAME] + [["chain-a", "chain-b", "chain-c"]], ids="-".join)
def test_ranks_zero_passes_and_sequence_ranks_change_neither_curve_nor_model(told: Path, names: list[str]) -> None:
    """The chain: two ranks under ZeRO-3 are stopped at step 6, four under ZeRO-2 with Ulysses and passes go on to 7,
    one alone to the end."""
    alone, found = of(told, "one"), of(told, *names)
    assert sorted(alone) == sorted(found) == list(range(1, RUN.steps + 1))
    for step, metrics in alone.items():
        for name in SUMS:
            assert found[step][name] == pytest.approx(metrics[name], rel=1e-4), (step, name)
    assert alone[9]["loss"] < 0.8 * alone[1]["loss"], "it learns nothing, so nothing is shown"
    one, other = (model_at(told, where, 9).state_dict() for where in ("one", names[0].removesuffix("-a")))
    for name, weight in one.items():
        # Adam divides by the gradient's size: where that is all rounding, a step has the rounding's sign
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=5e-4, msg=name)


@pytest.mark.slow
def test_bf16_goes_on_from_its_exact_weights_whatever_ranks_there_are(told: Path) -> None:
    calm, chain = of(told, "bf16-2"), of(told, "bf16-chain-a", "bf16-chain-b", "bf16-chain-c")
    exact = of(told, "one")
    for step in calm:
        assert chain[step]["loss"] == pytest.approx(calm[step]["loss"], rel=1e-3), step
        assert calm[step]["loss"] == pytest.approx(exact[step]["loss"], rel=2e-2), step
    assert next(model_at(told, "bf16-2", 9).parameters()).dtype == torch.float32  # what load_model makes of the file


@pytest.mark.slow
def test_a_stop_saves_and_what_is_published_is_what_an_undisturbed_run_publishes(told: Path) -> None:
    chain, calm = checkpoints_of(told / "chain").all(), checkpoints_of(told / "one").all()
    assert [one.step for one in chain] == [one.step for one in calm] == [4, 8, 9]  # those of steps 6 and 7 are gone
    for one, other in zip(chain, calm, strict=True):
        assert one.facts["loss"] == pytest.approx(other.facts["loss"], rel=1e-4)
        assert one.facts["tokens_seen"] == other.facts["tokens_seen"]


@pytest.mark.slow
def test_a_damaged_file_is_named_and_training_goes_on_from_the_checkpoint_before(told: Path) -> None:
    said = json.loads((told / "damaged-b.json").read_text())
    (note,) = said["notes"]
    assert "step-000009" in note and "is damaged" in note and "step 9 is left out" in note, note
    assert min(map(int, said["steps"])) == 9, "it went on from step 8"
    calm = of(told, "one")
    assert said["steps"]["9"]["loss"] == pytest.approx(calm[9]["loss"], rel=1e-4)
    assert {one.step for one in checkpoints_of(told / "damaged").all()} == {4, 8, 10}
    assert list((told / "damaged").rglob("step-000009.json.damaged"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_in_one_sentence_that_names_rank_pack_and_rows(
    told: Path,
    packs: pa.Table,  # noqa: F811
) -> None:
    """Nothing of that step is saved: training goes on from the last good checkpoint once the row is gone."""
    said, healed = (json.loads((told / f"{name}.json").read_text()) for name in ("poisoned", "healed"))
    row = packs.slice(loader_of(packs, 4).rows(1)[1], 1).to_pylist()[0]
    assert said["fault"].startswith("the loss of step 2 is not finite, rank 1, pack "), said["fault"]
    assert row["key"].hex()[:12] in said["fault"] and row["parents"][0].hex()[:12] in said["fault"]
    assert list(said["steps"]) == ["1"] and list(healed["steps"]) == ["2", "3", "4"] and healed["fault"] is None
    assert [one.step for one in checkpoints_of(told / "poisoned").all()] == [1, 2, 3, 4]


@pytest.mark.slow
def test_training_learns_from_the_packs_of_its_phases_at_their_rates(told: Path, phased: pa.Table) -> None:
    stream, seen, steps = Stream(FakeReader(phased), 2, 0, PHASED.phases), 0, of(told, "phases")
    assert sorted(steps) == list(range(1, 8))
    for step in sorted(steps):
        seen += sum(phased["num_places"][row].as_py() for row in stream.rows(step - 1))
        assert steps[step]["tokens_seen"] == seen and steps[step]["lr"] == (1e-3 if step <= 4 else 1e-4)


@pytest.mark.slow
def test_what_is_frozen_stays_and_the_rest_learns_and_goes_on_after_a_checkpoint(told: Path) -> None:
    before, after = (model_at(told, "frozen", step).state_dict() for step in (2, 6))
    still = {name for name in before if (before[name] == after[name]).all()}
    assert still == {name for name in before if name.startswith("trunk.blocks.0.") or "norm" in name}


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_last_good_checkpoint_is_still_one(told: Path) -> None:
    if not (told / "full.json").exists():
        pytest.skip("a disk of its own needs the right to mount")
    first, again = (json.loads((told / f"{name}.json").read_text()) for name in ("full", "full-again"))
    for said in (first, again):
        assert "could not save step 8 (No space left on device: " in said["fault"], said["fault"]
    assert min(map(int, again["steps"])) == 5, "it went on from step 4"
    assert [one.step for one in checkpoints_of(told / "full").all()] == [4]


@pytest.mark.slow
def test_the_last_and_the_best_checkpoint_are_kept(told: Path) -> None:
    there = checkpoints_of(told / "kept").all()
    steps = of(told, "kept")
    means = {end: sum(steps[s]["loss"] for s in range(begin + 1, end + 1)) / (end - begin)
             for begin, end in ((0, 2), (2, 4), (4, 6), (6, 8), (8, 9))}  # fmt: skip
    assert {one.step for one in there} == {9, min(means, key=lambda end: means[end])}
    folders = {path.parent.name.split(".")[0] for path in (told / "kept").rglob("model.safetensors")}
    assert folders == {f"step-{one.step:06d}" for one in there}, "files of others are left"


@pytest.mark.slow
def test_a_spike_is_skipped_said_and_changes_no_weight(told: Path) -> None:
    said = json.loads((told / "spiky.json").read_text())
    assert len(said["notes"]) == 80 - 64 and said["notes"][0].startswith("step 65 was skipped: its loss, ")
    steps = {int(step): metrics for step, metrics in said["steps"].items()}
    assert steps[64]["skipped"] == 0 and steps[80]["skipped"] == 16
    before, after = (model_at(told, "spiky", step).state_dict() for step in (70, 80))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    checkpoints = checkpoints_of(told / "spiky")
    with checkpoints.fetch(checkpoints.all()[-1]) as folder:
        assert json.loads((folder / TRAINER_FILE).read_text())["updates"] == 64


@pytest.mark.slow
def test_speed_is_told_and_a_trace_left(told: Path) -> None:
    said = json.loads((told / "one.json").read_text())
    assert sorted(said["shown"]) == ["trace.json.gz", "trace.txt"]
    metrics = said["steps"]["9"]
    assert 0 < metrics["mfu"] <= metrics["hfu"] < 1.2 and metrics["step_s"] > 0 and metrics["step_s/predicted"] > 0
    assert metrics["imbalance"] == 1.0 and metrics["memory_gib"] > 0 and metrics["tokens_per_s/vision"] > 0
    recomputed = of(told, "two-zero3-passes")[9]
    assert recomputed["hfu"] == pytest.approx(recomputed["mfu"] * 4 / 3) and recomputed["imbalance"] >= 1


@pytest.mark.slow
def test_two_trainers_on_one_key_leave_one_model_and_no_mixed_files(told: Path) -> None:
    """A second writer of a step adopts the first one's: its own files are in no manifest."""
    checkpoints = checkpoints_of(told / "race")
    first = checkpoints.all()[-1]
    target = checkpoints.target(first.step)
    with checkpoints.fetch(checkpoints.all()[0]) as folder:
        made = checkpoints.upload(target, folder)
    assert target not in str(checkpoints.files(first))
    assert checkpoints.publish(first.step, target, made, {"loss": 0.0}) == first
