"""kill -9 at every arrow of the protocol, and at random moments: the same command goes on, and nothing shows."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.compact import FEW_FRAGMENTS
from infra.faults import POINTS
from infra.folder_bucket import LocalBucket
from pipelines import gc
from pipelines.standing import Standing
from tests.conftest import REPO, answered, plait

TOY = ["pipeline=tests.toy:graph", "source=src", "root=root", "tracking=none", "cluster.stages.lengths.shard_rows=3"]


def write_source(folder: Path) -> None:
    """Five texts."""
    (folder / "src").mkdir(exist_ok=True)
    for i in range(5):
        (folder / "src" / f"t{i}.txt").write_text(f"alpha{i} beta{i} same drop{i} none{i}")


def contents(folder: Path) -> dict[str, tuple]:
    """Keys of every dataset and how often each materialisation was published."""
    standing = Standing(LocalBucket(folder / "root"))
    found = {}
    for name in standing.order():
        done = standing.done(name)
        keys = standing.store.scan(standing.snapshot(name), ["key"])["key"].to_pylist()
        assert len(keys) == len(set(keys))
        counts = tuple(done[c] for c in ("rows_in", "rows_out", "empty", "filtered", "quarantined"))
        found[name] = (sorted(keys), done["snapshot"]["digest"], counts)
    return found


@pytest.fixture(scope="module", autouse=True)
def shared_ray(ray):
    """Drivers join the Ray of the test session: a kill takes the driver and its actors, and costs no start."""
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    yield
    del os.environ["RAY_ADDRESS"]


def change_source(folder: Path) -> None:
    """One text more, one less."""
    (folder / "src" / "t9.txt").write_text("gamma9 delta9")
    (folder / "src" / "t0.txt").unlink()


def assert_killed_at(point: str, folder: Path) -> None:
    """Run until the driver kills itself there."""
    killed = plait("run", *TOY, cwd=folder, env={"PLAIT_CRASH_AT": point})
    assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)


@pytest.fixture(scope="module")
def after_first(tmp_path_factory):
    """A folder on which a run ended that nobody disturbed, for the tests to go on from copies of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_source(folder)
    assert plait("run", *TOY, cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(after_first, tmp_path_factory):
    """Two runs that nobody disturbed: five texts, then one more and one less."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(after_first, folder, dirs_exist_ok=True)
    change_source(folder)
    assert plait("run", *TOY, cwd=folder).returncode == 0
    return contents(after_first), contents(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)  # ten runs
def test_a_driver_killed_at_every_arrow_one_after_the_other_ends_with_the_same_rows(tmp_path, undisturbed):
    """A full materialisation: each run finds what the one before left behind, and dies one arrow later."""
    write_source(tmp_path)
    for point in POINTS:
        if point != "restored":  # there is nothing to restore yet
            assert_killed_at(f"lengths:{point}", tmp_path)
    assert plait("run", *TOY, cwd=tmp_path).returncode == 0
    assert contents(tmp_path) == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_at_any_arrow_resumes_to_the_same_rows(point, tmp_path, after_first, undisturbed):
    """In an incremental materialisation, whose HEAD has moved away from its base where something is restored."""
    _, second = undisturbed
    shutil.copytree(after_first, tmp_path, dirs_exist_ok=True)
    if point == "restored":
        # another mark changes `upper`, so that its HEAD is not the base of the next run's recipe
        assert plait("run", *TOY, "upper.mark=?", cwd=tmp_path).returncode == 0
    change_source(tmp_path)
    assert_killed_at(f"{'upper' if point == 'restored' else 'lengths'}:{point}", tmp_path)
    assert plait("run", *TOY, cwd=tmp_path).returncode == 0
    assert contents(tmp_path) == second
    # what the killed tries left behind is found by reachability, and nothing that stands is touched
    root = LocalBucket(tmp_path / "root")
    gc.collect(root, gc.find(root))
    assert gc.find(root) == []
    assert contents(tmp_path) == second
    assert_all_fresh(tmp_path)


def assert_all_fresh(folder: Path) -> None:
    """Nothing is left to do."""
    plan = answered("plan", *TOY, cwd=folder)
    assert {(s["state"], s["compute"], s["drop"]) for s in plan["stages"]} == {("fresh", 0, 0)}


@pytest.mark.slow
def test_a_driver_killed_between_merging_fragments_and_committing_them_merges_again(tmp_path):
    """With more small fragments than are left alone (infra/compact.py); the point above merges nothing."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text(" ".join(f"w{i}" for i in range(FEW_FRAGMENTS + 6)))
    one_each = [*TOY[:-1], "cluster.stages.lengths.shard_rows=1"]
    killed = plait("run", *one_each, cwd=tmp_path, env={"PLAIT_CRASH_AT": "lengths:merged"})
    assert killed.returncode == -signal.SIGKILL
    assert plait("run", *one_each, cwd=tmp_path).returncode == 0
    root = LocalBucket(tmp_path / "root")
    standing = Standing(root)
    snapshot = standing.snapshot("lengths")
    assert snapshot.rows == FEW_FRAGMENTS + 6 and len(standing.store.open(snapshot).get_fragments()) == 1
    garbage = {g.path for g in gc.find(root)}
    assert sum(path.endswith(".lance") for path in garbage) == FEW_FRAGMENTS + 6 + 1  # the shards' own, a first merge
    gc.collect(root, gc.find(root))
    assert len(standing.store.scan(snapshot, ["key", "chars"])) == FEW_FRAGMENTS + 6


@pytest.mark.slow
def test_a_run_in_waves_killed_between_two_waves_ends_where_an_undisturbed_run_in_one_go_ends(tmp_path, undisturbed):
    write_source(tmp_path)
    killed = plait("run", "--wave", "2", *TOY, cwd=tmp_path, env={"PLAIT_CRASH_AT": "lengths:committed"})
    assert killed.returncode == -signal.SIGKILL
    done = plait("run", "--wave", "2", *TOY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == undisturbed[0]
    assert plait("run", *TOY, cwd=tmp_path).stdout.count("Nothing to do: everything is fresh.") == 1


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_rows_and_redoes_no_finished_shard(tmp_path, undisturbed):
    write_source(tmp_path)
    calls = tmp_path / "calls"
    calls.mkdir()
    environment = os.environ | {"PYTHONPATH": str(REPO), "TOY_CALLS": str(calls), "TOY_SLEEP": "0.15"}
    command = [sys.executable, "-m", "pipelines.cli.main", "run", *TOY, "cluster.stages.lengths.batch_rows=1"]
    for _ in range(3):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = time.monotonic()
        while process.poll() is None and len(list(calls.glob("lengths-*"))) < 5 and time.monotonic() - started < 60:
            time.sleep(0.05)
        time.sleep(random.random() * 0.8)
        process.kill()
        process.wait()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == undisturbed[0]
    # 25 words; a killed run loses at most the shards in flight: two actors with three words each
    assert len(list(calls.glob("lengths-*"))) <= 25 + 3 * 6


@pytest.mark.slow
def test_two_drivers_on_one_key_publish_one_version_and_both_succeed(tmp_path, undisturbed):
    write_source(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(REPO), "TOY_SLEEP": "0.05"}
    command = [sys.executable, "-m", "pipelines.cli.main", "run", *TOY]
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert contents(tmp_path) == undisturbed[0]
    standing = Standing(LocalBucket(tmp_path / "root"))
    for name, dones in standing.all.items():
        assert len(dones) == 1 and standing.store.head(name) == 1, name
