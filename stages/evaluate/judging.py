"""What every judging stage shares: rows of answers, judges, rows of verdicts. Not a stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from stages.base import BadRow, Outcome, Row
from stages.evaluate.judge import Answer, Judge
from stages.evaluate.rewriting import asked_for, told
from stages.evaluate.suite import Judged, Question, Suite, Verdict
from stages.evaluate.suites import Options, suite_of

ANSWER_COLUMNS = (
    "files_sha256", "training", "step", "question", "index", "suite", "task", "prompt", "about", "evidence", "media",
    "text",
)  # fmt: skip
_PASSED_ON = ("files_sha256", "training", "step", "question", "index", "suite", "task", "prompt")
VERDICT_COLUMNS = ("files_sha256", "question", "index", "suite", "task", "judge", "score", "parts", "features")
VERDICT_SCHEMA = pa.schema(
    [
        ("files_sha256", pa.string()),
        ("training", pa.string()),
        ("step", pa.int64()),
        ("question", pa.string()),
        ("index", pa.int64()),
        ("suite", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("judge", pa.string()),
        pa.field("score", pa.float64(), nullable=True),
        ("parts", pa.string()),
        pa.field("features", pa.list_(pa.float32()), nullable=True),
    ]
)
"""A row per answer: `judge` names who found it (and who rewrote the prompt), `score` is null where only all answers
together give one, `parts` is JSON."""


def judged_by_suite(
    rows: Sequence[Row], judges: dict[str, Judge], judge_of: Callable[[str], Judge], options: Options
) -> list[Outcome]:
    """Verdicts on answers, those of one suite together; `judges` keeps those that were made, by suite."""
    outcomes: list[Outcome] = []
    for name, alike in groupby(rows, key=lambda row: row["suite"]):
        if name not in judges:
            judges[name] = judge_of(name)
        outcomes += verdicts_of(list(alike), judges[name], suite_of(name, options))
    return outcomes


def verdicts_of(rows: Sequence[Row], judge: Judge, suite: Suite) -> list[Outcome]:
    """What a judge finds in answers of one suite, and what the suite makes of it."""
    answers = [_answer(row) for row in rows]
    return [
        found if isinstance(found, BadRow) else _verdict(row, suite, answer.question, found, judge.name)
        for row, answer, found in zip(rows, answers, judge.evidence(answers), strict=True)
    ]


def _answer(row: Row) -> Answer:
    from stages.evaluate.answering import shown

    about = json.loads(row["about"])
    return Answer(
        question=Question(prompt=asked_for(row["prompt"], about), task=row["task"], about=about),
        name=row["question"],
        index=row["index"],
        frames=None if row["media"] is None else shown(row["media"]),
        text=row["text"],
    )


def _verdict(row: Row, suite: Suite, question: Question, evidence: Mapping[str, Any], judge: str) -> Outcome:
    try:
        verdict = suite.verdict(question, evidence)
    except BadRow as bad:
        return bad
    return [
        {
            **{name: row[name] for name in _PASSED_ON},
            "judge": told(judge, question.about),
            "score": None if math.isnan(verdict.score) else verdict.score,
            "parts": json.dumps(verdict.parts, sort_keys=True),
            "features": evidence.get("image"),
        }
    ]


def judged_of(rows: Iterable[Row]) -> list[Judged]:
    """Verdicts as `Suite.scores` sees them."""
    return [
        Judged(
            question=row["question"],
            task=row["task"],
            index=row["index"],
            verdict=Verdict(score=math.nan if row["score"] is None else row["score"], parts=json.loads(row["parts"])),
            features=None if row["features"] is None else np.asarray(row["features"], np.float32),
        )
        for row in rows
    ]
