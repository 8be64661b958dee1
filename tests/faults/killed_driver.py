"""A driver of a training that somebody kills: `python -m tests.faults.killed_driver FOLDER`, on the Ray of RAY_ADDRESS.

FOLDER/packs.arrow is trained on, slowly; every step that the driver hears of is a line of FOLDER/heard.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import stages.train.train
from tests.faults.test_hang import SlowJob
from tests.stages.test_train import STAGE


@dataclass
class HeardJob(SlowJob):
    """Writes down what it hears at once."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with (self.scratch / "heard").open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")


def main() -> None:
    """Train to the end, if nobody minds."""
    folder = Path(sys.argv[1])
    stages.train.train.LOG_EVERY = 1
    packs = pa.ipc.open_file(folder / "packs.arrow").read_all()
    list(STAGE.run(HeardJob(folder, {"packs": packs}, num_workers=2, step_s=0.5)))


if __name__ == "__main__":
    main()
