"""From verdicts to scores with intervals, and what the gates say of each checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import Edge, Job, JobStage, Row
from stages.evaluate.judging import VERDICT_COLUMNS, judged_of
from stages.evaluate.statistics import Comparison, Gate, Interval, Ruling, alone, compared, intervals, ruled
from stages.evaluate.suite import Judged, Suite
from stages.evaluate.suites import Options, class_of, meant, scores_of, suite_of

_CHECKPOINT_COLUMNS = ("files_sha256", "checkpoint", "training", "begun", "step")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What one score must keep to; one of the two, or both."""

    floor: float | None = None
    """Least value; of a score where lower is better the largest."""
    max_drop: float | None = None
    """Most that it may be worse than the champion's, on the same answers."""


@dataclass(frozen=True, kw_only=True)
class Marks(JobStage):
    """Named scores of every checkpoint with bootstrap intervals, and the gates.

    Checkpoints are walked in the order in which they were trained. Each is compared, answer by answer, with the
    champion so far, and one that passes every gate is the champion from then on: a pure function of the verdicts, so it
    comes out the same whoever scores, and in how many goes. A checkpoint that lacks verdicts never passes.

    One row per checkpoint and score; `outcome` is that of its gate ("" where it has none), `champion` tells whether the
    checkpoint became it.
    """

    writes: ClassVar[str] = "marks"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("checkpoints", columns=_CHECKPOINT_COLUMNS),
        Edge("trials", columns=("files_sha256", "suite", "question")),
        Edge("verdicts", columns=VERDICT_COLUMNS),
        Edge("opinions", columns=VERDICT_COLUMNS),
        Edge("likelihoods", columns=VERDICT_COLUMNS),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("files_sha256", pa.string()),
            ("checkpoint", pa.string()),
            ("training", pa.string()),
            ("step", pa.int64()),
            ("suite", pa.string()),
            ("asked", pa.string()),
            ("score", pa.string()),
            pa.field("value", pa.float64(), nullable=True),
            pa.field("low", pa.float64(), nullable=True),
            pa.field("high", pa.float64(), nullable=True),
            ("num_questions", pa.int64()),
            ("num_judged", pa.int64()),
            ("num_wanted", pa.int64()),
            ("judge", pa.string()),
            ("outcome", pa.string()),
            ("reason", pa.string()),
            ("against", pa.string()),
            ("champion", pa.bool_()),
        ]
    )

    gates: Mapping[str, Bound] = field(default_factory=dict)
    """By the name of the score, as composition/overall."""
    options: Options = field(default_factory=dict)
    """The suites' own settings."""
    resamples: int = 1000
    """Draws of questions for an interval."""

    def __post_init__(self) -> None:
        for name, bound in self.gates.items():
            class_of(name.partition("/")[0])
            Gate(score=name, floor=bound.floor, max_drop=bound.max_drop)
        if self.resamples < 100:
            raise UserError(f"marks.resamples is {self.resamples}: give 100 or more, 1000 are usual")

    def settings(self) -> dict[str, Any]:
        """With the revisions of the suites."""
        return super().settings() | meant(self.options)

    def run(self, job: Job) -> Iterator[Row]:
        """Checkpoint by checkpoint, as they were trained."""
        checkpoints = sorted(_rows(job, "checkpoints", ("key", *_CHECKPOINT_COLUMNS)), key=_order)
        losses = _rows(job, "likelihoods", VERDICT_COLUMNS)
        found = [row for name in ("verdicts", "opinions") for row in _rows(job, name, VERDICT_COLUMNS)]
        judged, judges = _judged([*found, *losses], self.options)
        # of likelihoods a checkpoint has all or none
        wanted, asked = _wanted([*_rows(job, "trials", ("files_sha256", "suite", "question")), *losses])
        walk = _Walk(self, judged, wanted, asked)
        for number, checkpoint in enumerate(checkpoints):
            job.progress(number, len(checkpoints), "checkpoints scored")
            yield from self._scored(checkpoint, walk, judges)
        job.summary({"checkpoints": len(checkpoints), "failed": walk.num_failed})
        job.picture("scores.json", json.dumps(walk.said, indent=1).encode())

    def _scored(self, checkpoint: Row, walk: _Walk, judges: Mapping[tuple[str, str], str]) -> Iterator[Row]:
        name, against = checkpoint["files_sha256"], walk.champion
        rulings, crowned = walk.visit(checkpoint)
        for suite in sorted({suite for of, suite in walk.wanted if of == name}):
            found = walk.judged.get((name, suite), [])
            for score, interval in _sure(suite_of(suite, self.options), found, self.resamples).items():
                ruling = rulings.get(score)
                yield {
                    **{column: checkpoint[column] for column in ("files_sha256", "checkpoint", "training", "step")},
                    "suite": suite,
                    "asked": walk.asked[name, suite],
                    "score": score,
                    "value": _finite(interval.value),
                    "low": _finite(interval.low),
                    "high": _finite(interval.high),
                    "num_questions": interval.num_questions,
                    "num_judged": len(found),
                    "num_wanted": walk.wanted[name, suite],
                    "judge": judges.get((name, suite), ""),
                    "outcome": ruling.outcome if ruling else "",
                    "reason": ruling.reason if ruling else "",
                    "against": against or "",
                    "champion": crowned,
                    "parents": [checkpoint["key"]],
                    "label": f"{checkpoint['training'][:8]} step {checkpoint['step']} {score}",
                }


class _Walk:
    """The checkpoints in their order, and who is the champion."""

    def __init__(
        self,
        stage: Marks,
        judged: Mapping[tuple[str, str], Sequence[Judged]],
        wanted: Mapping[tuple[str, str], int],
        asked: Mapping[tuple[str, str], str],
    ) -> None:
        self.stage, self.judged, self.wanted, self.asked = stage, judged, wanted, asked
        self.champion: str | None = None
        self.num_failed = 0
        self.said: list[dict[str, Any]] = []

    def visit(self, checkpoint: Row) -> tuple[dict[str, Ruling], bool]:
        """What the gates say of it, by score, and whether it is the champion from now on."""
        name = checkpoint["files_sha256"]
        gates = list(self._gates())
        suites = {gate.score.partition("/")[0] for gate in gates}
        compared_by = {suite: self._compared(name, suite) for suite in suites}
        pairs = [(gate, compared_by[gate.score.partition("/")[0]]) for gate in gates]
        rulings = {one.gate.score: one for one in ruled(pairs)}
        outcomes = {one.outcome for one in rulings.values()}
        crowned = bool(self.stage.gates) and outcomes <= {"pass"} and self._is_whole(name)
        self.num_failed += "fail" in outcomes
        self.said.append(
            {"checkpoint": checkpoint["checkpoint"], "against": self.champion, "champion": crowned}
            | {"gates": {score: [one.outcome, one.reason] for score, one in rulings.items()}}
        )
        if crowned:
            self.champion = name
        return rulings, crowned

    def _gates(self) -> Iterator[Gate]:
        """Before there is a champion nothing can drop: floors alone are asked."""
        for score, bound in self.stage.gates.items():
            max_drop = None if self.champion is None else bound.max_drop
            if bound.floor is not None or max_drop is not None:
                better = class_of(score.partition("/")[0]).higher_is_better
                yield Gate(score=score, floor=bound.floor, max_drop=max_drop, higher_is_better=better)

    def _compared(self, name: str, suite: str) -> Comparison:
        scores, new = scores_of(suite_of(suite, self.stage.options)), self.judged.get((name, suite), [])
        if not new:
            return Comparison(new={}, change={}, missing=1.0)
        if self.champion is None:
            return alone(scores, new, resamples=self.stage.resamples)
        old = self.judged.get((self.champion, suite), [])
        return compared(scores, old, new, resamples=self.stage.resamples)

    def _is_whole(self, name: str) -> bool:
        """Whether every answer that is wanted of the gates' suites has a verdict."""
        suites = {score.partition("/")[0] for score in self.stage.gates}
        return all(len(self.judged.get((name, one), [])) == self.wanted.get((name, one), -1) for one in suites)


def _sure(suite: Suite, judged: Sequence[Judged], resamples: int) -> dict[str, Interval]:
    """Scores with their intervals; without an interval where drawing questions anew gives none."""
    if not judged:
        return {}
    draws = resamples if suite.resampled else 0
    return intervals(scores_of(suite), judged, resamples=draws)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _order(row: Row) -> tuple[str, str, int]:
    return row["begun"], row["training"], row["step"]


def _rows(job: Job, dataset: str, columns: Sequence[str]) -> list[Row]:
    return [row for batch in job.reader(dataset).scan(list(columns)) for row in batch.to_pylist()]


def _wanted(trials: Sequence[Row]) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], str]]:
    """By checkpoint and suite: how many answers are wanted, and a digest of the questions."""
    questions: dict[tuple[str, str], list[str]] = {}
    for row in trials:
        questions.setdefault((row["files_sha256"], row["suite"]), []).append(row["question"])
    asked = {pair: "".join(sorted(set(names))).encode() for pair, names in questions.items()}
    digests = {pair: hashlib.sha256(names).hexdigest()[:16] for pair, names in asked.items()}
    return {pair: len(names) for pair, names in questions.items()}, digests


def _judged(
    rows: Sequence[Row], options: Options
) -> tuple[dict[tuple[str, str], Sequence[Judged]], dict[tuple[str, str], str]]:
    """Settled verdicts, and who judged, by checkpoint and suite."""
    verdicts: dict[tuple[str, str], list[Judged]] = {}
    judges: dict[tuple[str, str], set[str]] = {}
    for row, one in zip(rows, judged_of(rows), strict=True):
        pair = row["files_sha256"], row["suite"]
        verdicts.setdefault(pair, []).append(one)
        judges.setdefault(pair, set()).add(row["judge"])
    settled = {pair: suite_of(pair[1], options).settled(some) for pair, some in verdicts.items()}
    return settled, {pair: ", ".join(sorted(names)) for pair, names in judges.items()}
