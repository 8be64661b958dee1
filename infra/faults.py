"""Named crash points: the arrows of the commit protocol at which the tests kill the process, or put it to sleep."""

from __future__ import annotations

import os
import signal

VARIABLE = "PLAIT_CRASH_AT"
PAUSE_VARIABLE = "PLAIT_PAUSE_AT"
POINTS = ("claimed", "planned", "shard", "staged", "merged", "restored", "committed", "tagged", "rest", "done")
_paused: set[str] = set()


def crash_point(name: str, dataset: str) -> None:
    """Kill this process here if the environment asks for `dataset:name`; stop it, once, if it is in the list of
    those to stop at (only the tests do)."""
    here = f"{dataset}:{name}"
    if os.environ.get(VARIABLE) == here:
        os.kill(os.getpid(), signal.SIGKILL)
    if here in os.environ.get(PAUSE_VARIABLE, "").split(",") and here not in _paused:
        _paused.add(here)
        os.kill(os.getpid(), signal.SIGSTOP)
