"""Ray is lost: the driver says so in one sentence and ends; over a new Ray the same command goes on."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from infra.folder_bucket import LocalBucket
from pipelines.standing import Standing
from tests.conftest import REPO

HEAD = "import time; from infra.cluster import connect; ray = connect(None, 2); print(ray.get_runtime_context().gcs_address, flush=True); time.sleep(600)"  # noqa: E501
TOY = ["pipeline=tests.toy:graph", "source=src", "root=root", "tracking=none", "cluster.stages.lengths.shard_rows=2"]
RUN = [sys.executable, "-m", "pipelines.cli.main", "run", *TOY, "cluster.stages.lengths.batch_rows=1"]
WORDS = [f"w{i}" for i in range(24)]
BOUND_S = 55.0


class Head:
    """A private Ray on loopback: a process tree of its own, which dies at once."""

    def __init__(self, environment):
        quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", HEAD], env=environment, **quiet)
        self.address = self.process.stdout.readline().strip()

    def kill(self):
        """SIGKILL to every process, the head's first."""
        tree = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


@pytest.mark.slow
def test_a_lost_ray_ends_the_run_in_one_sentence_and_a_new_one_finishes_it(toy_marks, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text(" ".join(WORDS))
    calls = tmp_path / "calls"
    calls.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(REPO),
        "TOY_CALLS": str(calls),
        "TOY_SLEEP": "0.3",
        "RAY_AUTH_MODE": "token",
    }
    environment.pop("RAY_ADDRESS", None)
    head = Head(environment)
    try:
        command = [*RUN, f"cluster.address={head.address}"]
        driver = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + 120
        while len(list(calls.glob("lengths-*"))) < 8:
            assert driver.poll() is None and time.monotonic() < end, driver.stderr.read()
            time.sleep(0.1)
    finally:
        head.kill()
    lost = time.monotonic()
    _, said = driver.communicate(timeout=3 * BOUND_S)
    assert time.monotonic() - lost < BOUND_S
    assert driver.returncode == 1, (driver.returncode, said)
    (sentence,) = [line for line in said.splitlines() if line.startswith("plait: ")]
    assert "Ray was lost" in sentence and "again" in sentence and "Traceback" not in said, said
    before = len(list(calls.glob("lengths-*")))
    head = Head(environment)
    try:
        command = [*RUN, f"cluster.address={head.address}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        head.kill()
    assert done.returncode == 0, done.stderr
    standing = Standing(LocalBucket(tmp_path / "root"))
    labels = standing.store.scan(standing.snapshot("lengths"), ["label"])["label"].to_pylist()
    assert sorted(labels) == sorted(WORDS) and standing.done("lengths")["quarantined"] == 0
    # two actors with two words each were cut off; what was finished before is not done again
    assert len(list(calls.glob("lengths-*"))) - before <= len(WORDS) - before + 4 + 2
