"""Scores, intervals and gates of made-up verdicts: who passes, who fails, who is the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.types import UserError
from stages.evaluate.judging import VERDICT_SCHEMA
from stages.evaluate.marks import Bound, Marks
from stages.evaluate.suite_composition import TASKS
from tests.stages.fake_job import FakeJob

QUESTIONS = 30
"""Of each task."""
SEEN = {"objects": [], "size": [64, 64]}
EMPTY = pa.table({name: pa.array([], VERDICT_SCHEMA.field(name).type) for name in VERDICT_SCHEMA.names})


def verdicts(name: str, share: float, seed: int, missing: int = 0) -> list[dict[str, Any]]:
    """Verdicts of a checkpoint that gets this share of the answers right."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            **{"files_sha256": name, "training": "t", "step": 0, "question": f"{task} {number}", "index": 0},
            **{"suite": "composition", "task": task, "prompt": "", "judge": "made up", "features": None},
            "score": float(rng.random() < share),
            "parts": json.dumps({"claim": {"include": [{"name": "star", "count": 1}]}, "seen": SEEN}),
        }
        for task in TASKS
        for number in range(QUESTIONS)
    ]
    return rows[missing:]


def scores(scratch: Path, found: Mapping[str, list[dict[str, Any]]], **settings: Any) -> list[dict[str, Any]]:
    """Rows of `scores` of checkpoints in this order."""
    checkpoints = [
        {"key": bytes([at] * 16), "files_sha256": name, "checkpoint": name, "training": "t", "begun": "b", "step": at}
        for at, name in enumerate(found)
    ]
    trials = [
        {"files_sha256": name, "suite": "composition", "question": f"{task} {number}"}
        for name in found
        for task in TASKS
        for number in range(QUESTIONS)
    ]
    every = [row for rows in found.values() for row in rows]
    tables = {
        "checkpoints": pa.Table.from_pylist(checkpoints),
        "trials": pa.Table.from_pylist(trials),
        "verdicts": pa.Table.from_pylist(every, VERDICT_SCHEMA),
        "opinions": EMPTY,
        "likelihoods": EMPTY,
    }
    job = FakeJob(scratch, tables)
    return list(Marks(resamples=200, **settings).run(job))


def of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["files_sha256"] == name and row["score"] == "composition/overall")


GATE = {"composition/overall": Bound(floor=0.3, max_drop=0.15)}


def test_a_planted_bad_checkpoint_trips_the_gate_and_the_champion_stays(tmp_path: Path) -> None:
    found = {"good": verdicts("good", 0.8, 1), "bad": verdicts("bad", 0.4, 2), "as good": verdicts("as good", 0.8, 1)}
    rows = scores(tmp_path, found, gates=GATE)
    assert (of(rows, "good")["outcome"], of(rows, "good")["champion"]) == ("pass", True)
    bad = of(rows, "bad")
    assert (bad["outcome"], bad["champion"], bad["against"]) == ("fail", False, "good")
    assert "its change is -0." in bad["reason"]
    again = of(rows, "as good")
    assert (again["outcome"], again["champion"], again["against"]) == ("pass", True, "good")


def test_what_draws_cannot_tell_apart_is_inconclusive_and_no_pass(tmp_path: Path) -> None:
    found = {"good": verdicts("good", 0.8, 1), "perhaps": verdicts("perhaps", 0.68, 3)}
    row = of(scores(tmp_path, found, gates={"composition/overall": Bound(max_drop=0.12)}), "perhaps")
    assert (row["outcome"], row["champion"]) == ("inconclusive", False)


def test_a_checkpoint_that_lacks_verdicts_never_passes(tmp_path: Path) -> None:
    found = {"good": verdicts("good", 0.8, 1), "cut short": verdicts("cut short", 0.99, 4, missing=1)}
    row = of(scores(tmp_path, found, gates=GATE), "cut short")
    assert not row["champion"] and row["outcome"] == "inconclusive"
    assert (row["num_judged"], row["num_wanted"]) == (QUESTIONS * 6 - 1, QUESTIONS * 6)
    alone = of(scores(tmp_path, {"cut short": found["cut short"]}, gates=GATE), "cut short")
    assert not alone["champion"]  # nor as the first


def test_without_gates_there_are_scores_with_intervals_and_no_champion(tmp_path: Path) -> None:
    rows = scores(tmp_path, {"good": verdicts("good", 0.8, 1)})
    row = of(rows, "good")
    assert row["low"] < row["value"] < row["high"] and row["value"] == pytest.approx(0.8, abs=0.08)
    assert (row["outcome"], row["champion"], row["judge"]) == ("", False, "made up")
    assert {one["score"] for one in rows} > {f"composition/{task}" for task in TASKS}


def test_a_gate_of_what_no_suite_scores_or_that_asks_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="'nonsense' is no suite: choose among"):
        Marks(gates={"nonsense/overall": Bound(floor=1)})
    with pytest.raises(UserError, match="asks for nothing"):
        Marks(gates={"composition/overall": Bound()})
