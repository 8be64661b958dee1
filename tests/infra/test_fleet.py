"""Actors go where the work is: stages grow and shrink, and who needs a GPU does not wait behind who does not."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    """What happened on a Ray with two CPUs and one GPU."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.infra.fleet_world"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_gpu_stage_gets_its_place_while_a_cpu_stage_has_more_work(world):
    assert len(world["gpu"]) == 5 and len(world["cpu"]) == 60
    first = min(task["started"] for task in world["gpu"])
    assert first < max(task["ended"] for task in world["cpu"]) - 0.5  # it did not wait for the other to end
    # the CPU stage went on meanwhile, on what was left
    assert any(first < task["ended"] < max(t["ended"] for t in world["gpu"]) for task in world["cpu"])


def test_a_stage_shrinks_for_another_and_grows_again(world):
    start, end = (f(t[k] for t in world["gpu"]) for f, k in ((min, "started"), (max, "ended")))
    at_once = max(
        sum(t["started"] < at < t["ended"] for t in world["cpu"]) for at in _moments(start + 0.05, end - 0.05)
    )
    after = {t["pid"] for t in world["cpu"] if t["started"] > end}
    assert at_once == 1 and len(after) == 2
    assert world["free_at_the_end"] == 2


def _moments(start, end):
    return [start + (end - start) * i / 20 for i in range(21)]


def test_an_actor_that_never_fits_is_refused_with_a_sentence(world):
    assert "asks for 1 CPU and 2 GPU, and this machine has 1 GPU" in world["greedy_error"]
