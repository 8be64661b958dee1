"""What `plait` alone says: the few things that one does first."""

from __future__ import annotations

from pathlib import Path

from infra.ledger import ROOT

DEFAULT_ROOT = "plait-data"
_TEXT = """\
plait makes a trained any-to-any model of raw videos, images and texts, and accounts for every row.

  plait run                  the demo: a sample corpus through all stages, in minutes
  plait plan source=DIR      what your own files would become, before anything runs
  plait run source=DIR       the same, done; once more: goes on, and computes only what moved
  plait status               what stands, and what became of every row
  plait ui                   all of it in a browser

All verbs: plait --help. From own videos to an own model, step by step: docs/tutorial.md.\
"""
_GOING_ON = "A root lies in this folder already ({root}): plait status tells of it, plait run goes on with it."


def say() -> int:
    """Print it; the exit status."""
    print(_TEXT)  # noqa: T201 - it is the answer
    if Path(DEFAULT_ROOT, ROOT).is_dir():
        print("\n" + _GOING_ON.format(root=DEFAULT_ROOT))  # noqa: T201
    return 0
