"""MLflow is a projection: it may be away, a driver may die before it tells, and the ledger makes it whole."""

import signal

import pytest

from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger
from infra.store import Store
from infra.tracking import Tracker
from pipelines.tell import Teller
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


def test_a_run_goes_on_without_mlflow_and_sync_makes_it_whole(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = toy.run(tracker=lambda: Tracker("http://127.0.0.1:9", None, "plait"))
    assert {s["state"] for s in away.values()} == {"done"}
    assert len([n for n in toy.progress.notes if "plait sync" in n]) == 1
    teller = Teller(Ledger(toy.root), Store(toy.root), lambda *_: {}, lambda: tracker_at(tmp_path))
    assert teller.sync() == (6, 0)
    assert teller.sync() == (0, 0)
    teller.end("FINISHED")
    assert len(materialisations(tmp_path)) == 6 == len(set(materialisations(tmp_path)))
    tracker = tracker_at(tmp_path)
    (parent,) = tracker.client.search_runs([tracker.experiment], "tags.`plait.pipeline` = 'toy'")
    children = tracker.client.search_runs([tracker.experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 6


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
