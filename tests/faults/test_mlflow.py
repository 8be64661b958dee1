"""MLflow is a projection: it may be away, a driver may die before it tells, and the ledger makes it whole."""

import signal
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from dashboards.story import story_of
from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger
from infra.store import Store
from infra.tracking import Tracker
from pipelines.cli.world import record
from pipelines.live import Curve
from pipelines.tell import Teller, keep_for_telling
from tests.conftest import plait


def tracker_at(folder):
    """A tracker on a database beside the test."""
    return Tracker(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"), "plait")


def materialisations(folder):
    """What MLflow knows: one run name per finished stage run."""
    tracker = tracker_at(folder)
    runs = tracker.client.search_runs([tracker.experiment], max_results=200)
    return sorted(r.data.tags["plait.materialisation"] for r in runs if "plait.materialisation" in r.data.tags)


@pytest.fixture
def toy(make_toy):
    made = make_toy()
    made.write("a.txt", "one two drop3")
    return made


def curve_of(tracker, run):
    """(step, value) of every point of the toy job's metric in a run of MLflow, in their order."""
    return sorted((m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, "chars"))


def runs_of(tracker, stage, status=None):
    """MLflow's runs of a stage that are not deleted."""
    found = tracker.client.search_runs([tracker.experiment], f"tags.`plait.stage` = '{stage}'")
    return [run for run in found if status in (None, run.info.status)]


def test_a_run_goes_on_without_mlflow_and_sync_makes_it_whole(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("pipelines.live.EVERY_S", 0.02)
    toy.write("b.txt", "nap1")
    away = toy.run(tracker=lambda: Tracker("http://127.0.0.1:9", None, "plait"))
    assert {s["state"] for s in away.values()} == {"done"}
    assert len([n for n in toy.progress.notes if "plait sync" in n]) == 1
    assert len([n for n in toy.progress.notes if "training goes on" in n]) == 1
    teller = Teller(Ledger(toy.root), Store(toy.root), lambda *_: {}, lambda: tracker_at(tmp_path))
    assert teller.sync() == (6, 0)
    assert teller.sync() == (0, 0)
    teller.end("FINISHED")
    assert len(materialisations(tmp_path)) == 6 == len(set(materialisations(tmp_path)))
    tracker = tracker_at(tmp_path)
    (parent,) = tracker.client.search_runs([tracker.experiment], "tags.`plait.pipeline` = 'toy'")
    children = tracker.client.search_runs([tracker.experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 6
    (book,) = runs_of(tracker, "book")
    steps = [step for step, _ in curve_of(tracker, book)]
    assert steps and steps == list(range(1, len(steps) + 1))


def test_the_parent_run_tells_the_run_in_words_and_as_a_picture_also_long_afterwards(toy, tmp_path):
    toy.write("bad.txt", "bad1")
    toy.run()
    ledger = Ledger(toy.root)
    teller = Teller(ledger, Store(toy.root), lambda *_: {}, lambda: tracker_at(tmp_path), story_of)
    teller.sync()
    teller.end("FAILED")  # the record knows better
    tracker = tracker_at(tmp_path)
    (parent,) = tracker.client.search_runs([tracker.experiment], "tags.`plait.pipeline` = 'toy'")
    assert parent.info.status == "FINISHED"
    ended = ledger.run(ledger.runs()[-1])
    assert story_of({**ended, "ok": False, "error": "the request was cancelled by the store"}, {}).status == "FAILED"
    assert story_of({**ended, "ok": False, "stopped": True}, {}).status == "KILLED"
    words = parent.data.tags["mlflow.note.content"]
    for stage in ledger.run(ledger.runs()[-1])["stages"]:
        counts = " | ".join(f"{stage[name]:,}" for name in ("rows_in", "rows_out", "filtered", "quarantined"))
        assert f"| {stage['name']} | done | {counts} | {stage['snapshot']['version']} |" in words
    path = tracker.client.download_artifacts(parent.info.run_id, "lineage.png", str(tmp_path))
    with Image.open(path) as picture:
        assert picture.width > picture.height > 100


def test_the_record_of_a_run_names_the_commit_of_the_checkout():
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%H"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert record()["code"]["commit"] == told


class Watched(Tracker):
    """Remembers what MLflow has of the toy's job each time that something was shown."""

    seen: ClassVar[list] = []

    def show(self, of, points):
        super().show(of, points)
        (run,) = runs_of(self, "book", "RUNNING")
        self.seen.append(curve_of(self, run))


def test_mlflow_has_the_steps_of_a_job_while_it_goes_on_and_each_once_when_it_is_done(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.live.EVERY_S", 0.02)
    monkeypatch.setattr(Watched, "seen", [])
    toy.write("a.txt", " ".join(f"nap{number}" for number in range(9, 39)))
    where = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), "plait"
    tracker_at(tmp_path)  # the tables are made
    toy.run(tracker=lambda: Watched(*where))
    assert Watched.seen and 0 < len(Watched.seen[0]) < 30, "nothing was told before the end"
    tracker = tracker_at(tmp_path)
    (run,) = runs_of(tracker, "book")
    assert run.info.status == "FINISHED" and "plait.live" not in run.data.tags
    assert [step for step, _ in curve_of(tracker, run)] == list(range(1, 31))
    assert not [name for name in toy.root.names("ledger/book") if "/curve." in name]


def interrupted(toy, tracker, doubled):
    """A curve whose driver was killed in the sixth step and whose next one went on from the fourth, told at the end.
    Returns what a materialisation told."""
    toy.run()
    ledger = Ledger(toy.root)
    (done,) = ledger.dones("book")
    folder = ledger.folder("book", done["key"])
    toy.root.delete(f"{folder.path}/metrics.{done['number']}")
    for driver, steps in (("killed", range(1, 7)), (done["run_id"], range(5, 10))):
        curve = Curve(folder, done["number"], driver, "toy", lambda: tracker_at(tracker), pytest.fail)
        curve.__enter__()
        for step in steps:
            curve.add(step, {"chars": step + (0.5 if driver == "killed" else 0.0)})
        curve._ended.set()
        curve._look()
    if doubled:
        made = tracker_at(tracker)
        (run,) = runs_of(made, "book", "RUNNING")
        made.client.log_metric(run.info.run_id, "chars", 9.0, step=9)
    keep_for_telling(folder, done["number"], curve.points(), {})


@pytest.mark.parametrize("doubled", [False, True], ids=["as-shown", "doubled-in-mlflow"])
def test_steps_told_by_a_killed_driver_and_by_the_next_one_are_there_once(toy, tmp_path, doubled):
    interrupted(toy, tmp_path, doubled)
    tracker = tracker_at(tmp_path)
    (shown,) = runs_of(tracker, "book", "RUNNING")
    teller = Teller(Ledger(toy.root), Store(toy.root), lambda *_: {}, lambda: tracker_at(tmp_path))
    assert teller.sync() == (6, 0) and teller.sync() == (0, 0)
    teller.end("FINISHED")
    (run,) = runs_of(tracker, "book")
    assert run.info.status == "FINISHED" and (run.info.run_id == shown.info.run_id) is not doubled
    assert curve_of(tracker, run) == [(s, s + (0.5 if s <= 6 else 0.0)) for s in range(1, 10)]
    (parent,) = tracker.client.search_runs([tracker.experiment], "tags.`plait.run_id` = 'killed'")
    assert run.data.tags["mlflow.parentRunId"] != parent.info.run_id, "it is the run's that ended it"


@pytest.mark.slow
def test_a_driver_that_dies_before_it_tells_is_told_for_by_the_next_run_once(toy, tmp_path, ray):
    where = ["pipeline=tests.toy:graph", "source=src", "root=data"]
    near = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    killed = plait("run", *where, cwd=tmp_path, env=near | {"PLAIT_CRASH_AT": "words:done"})
    assert killed.returncode == -signal.SIGKILL
    for _ in range(2):
        assert plait("run", *where, cwd=tmp_path, env=near).returncode == 0
    tracker = Tracker(f"sqlite:///{tmp_path}/data/mlflow.db", None, "plait")
    runs = tracker.client.search_runs([tracker.experiment], max_results=100)
    stages = [r.data.tags["plait.stage"] for r in runs if "plait.stage" in r.data.tags]
    assert sorted(stages) == ["book", "files", "lengths", "texts", "upper", "words"]
    told = Ledger(LocalBucket(tmp_path / "data"))
    assert all(told.folder(n, d["key"]).get(f"told.{d['number']}") for n in told.datasets() for d in told.dones(n))


def test_a_password_in_an_address_is_written_nowhere(toy):
    from infra.types import without_secrets

    toy.run(tracker=lambda: Tracker("nosuchscheme://me:hunter2@127.0.0.1:9/db", None, "plait"))
    assert toy.progress.notes and "hunter2" not in " ".join(toy.progress.notes)
    assert (
        without_secrets("plait run tracking.uri=http://me:hunter2@host/x") == "plait run tracking.uri=http://***@host/x"
    )
    for path in toy.root.folder.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
