"""Named crash points: the arrows of the commit protocol at which the tests kill the process."""

from __future__ import annotations

import os
import signal

VARIABLE = "PLAIT_CRASH_AT"
POINTS = ("claimed", "planned", "shard", "staged", "merged", "restored", "committed", "tagged", "rest", "done")


def crash_point(name: str, dataset: str) -> None:
    """Kill this process here if the environment asks for `dataset:name` (only the tests do)."""
    if os.environ.get(VARIABLE) == f"{dataset}:{name}":
        os.kill(os.getpid(), signal.SIGKILL)
