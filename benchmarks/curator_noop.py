"""The peer of orchestration.py, run by the Python of a venv that has nemo-curator: imports nothing of ours.

    PEER_PYTHON benchmarks/curator_noop.py 300 1500 5000

One source stage that emits N tasks, then three stages that hand their task on, 0.25 CPU each, on Curator's Ray Data
backend and a private Ray of 2 CPUs. Prints one JSON object: versions, and seconds by N. Ray's start is not counted,
the start of the stages is.
"""

import importlib.metadata
import json
import os
import sys
import time
from dataclasses import dataclass

os.environ.pop("RAY_ADDRESS", None)
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "LOGURU_LEVEL": "ERROR"}

import ray
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, Task


@dataclass
class Number(Task[int]):
    """One number."""

    @property
    def num_items(self) -> int:
        """One."""
        return 1

    def validate(self) -> bool:
        """Always."""
        return True


class Source(ProcessingStage[EmptyTask, Number]):
    """Emits `num` tasks."""

    name = "source"
    resources = Resources(cpus=0.25)

    def __init__(self, num: int) -> None:
        self.num = num

    def inputs(self) -> tuple[list[str], list[str]]:
        """Nothing."""
        return [], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Nothing."""
        return [], []

    def process(self, task: EmptyTask) -> list[Number]:
        """`num` tasks."""
        return [Number(dataset_name="numbers", data=i) for i in range(self.num)]


class Step(ProcessingStage[Number, Number]):
    """Adds one."""

    name = "step"
    resources = Resources(cpus=0.25)

    def inputs(self) -> tuple[list[str], list[str]]:
        """Nothing."""
        return [], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Nothing."""
        return [], []

    def process(self, task: Number) -> Number:
        """The next number."""
        task.data += 1
        return task


def measure(num: int) -> float:
    """Seconds for `num` tasks through all stages."""
    local = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, include_dashboard=False, **local, _node_ip_address="127.0.0.1")
    assert ray.cluster_resources()["CPU"] == 2, "this is not a private Ray"
    pipeline = Pipeline(name="noop", stages=[Source(num), Step(), Step(), Step()])
    started = time.perf_counter()
    tasks = pipeline.run(RayDataExecutor())
    seconds = time.perf_counter() - started
    assert sorted(task.data for task in tasks) == list(range(3, num + 3))
    ray.shutdown()
    return seconds


if __name__ == "__main__":
    found = {num: measure(int(num)) for num in sys.argv[1:]}
    versions = {name: importlib.metadata.version(name) for name in ("nemo-curator", "ray", "pyarrow")}
    print("\n" + json.dumps({"versions": versions, "seconds": found}))
