"""A driver that sleeps through the take-over of its claim wakes up, finds what was done, and adopts it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from infra.folder_bucket import LocalBucket
from infra.tracking import Tracker
from pipelines.standing import Standing
from tests.conftest import REPO

PAUSES = [("texts", "staged"), ("words", "shard"), ("lengths", "committing"), ("upper", "committed")]
TOY = ["pipeline=tests.toy:graph", "source=src", "root=root", "cluster.stages.words.shard_rows=2"]
RUN = [sys.executable, "-m", "pipelines.cli.main", "run", *TOY]
ELSEWHERE = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--uts", "sh", "-c"]
ELSEWHERE += ['hostname elsewhere && exec "$@"', "sh"]


def can_be_elsewhere() -> bool:
    return (
        bool(shutil.which("unshare"))
        and subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_be_elsewhere(), reason="a second host name needs the right to `unshare --uts`")
def test_a_driver_paused_anywhere_adopts_what_another_host_made_meanwhile(tmp_path, ray):
    (tmp_path / "src").mkdir()
    for i in range(5):
        (tmp_path / "src" / f"t{i}.txt").write_text(f"alpha{i} beta{i} same drop{i} none{i}")
    environment = os.environ | {"PYTHONPATH": str(REPO), "PLAIT_STALE_S": "1"}
    asleep = environment | {"PLAIT_PAUSE_AT": ",".join(f"{n}:{p}" for n, p in PAUSES)}
    del asleep["RAY_AUTH_TOKEN"]  # the sleeper keeps its actors: it needs a Ray of its own
    near = environment | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    sleeper = subprocess.Popen(
        RUN, cwd=tmp_path, env=asleep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for dataset, point in PAUSES:
            wait_until_stopped(sleeper)
            other = [*ELSEWHERE, *RUN, "--to", dataset]
            done = subprocess.run(
                other, cwd=tmp_path, env=near, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, (dataset, point, done.stderr)
            sleeper.send_signal(signal.SIGCONT)
        said, _ = sleeper.communicate(timeout=60)
        assert sleeper.returncode == 0, said
    finally:
        sleeper.kill()
    standing = Standing(LocalBucket(tmp_path / "root"))
    for name in standing.order():
        assert len(standing.ledger.every(name)) == 1 and standing.store.head(name) == 1, name
        assert standing.done(name)["quarantined"] == 0
    tracker = Tracker(f"sqlite:///{tmp_path}/root/mlflow.db", None, "plait")
    runs = tracker.client.search_runs([tracker.experiment], max_results=200)
    told = Counter(r.data.tags["plait.materialisation"] for r in runs if "plait.materialisation" in r.data.tags)
    assert set(told.values()) == {1} and len(told) == 6


def wait_until_stopped(process, limit_s=60.0):
    end = time.monotonic() + limit_s
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)
