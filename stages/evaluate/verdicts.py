"""Judging what needs no one else: pixels, words, and what a detector sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.base import BadRow, Edge, Outcome, Row, RowStage
from stages.evaluate.judging import ANSWER_COLUMNS, VERDICT_SCHEMA, verdict_row
from stages.evaluate.suites import revisions


@dataclass(frozen=True, kw_only=True)
class Verdicts(RowStage):
    """One verdict per answer whose evidence this machine can find by itself.

    pixels, words   the answer itself, nothing but arithmetic: the judge is called arithmetic
    objects         of a detector without weights, which knows the shapes of the sample corpus: pixels@REVISION
    """

    writes: ClassVar[str] = "verdicts"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("generations", columns=ANSWER_COLUMNS, where="evidence in ('pixels', 'words', 'objects')"),
    )
    schema: ClassVar[pa.Schema] = VERDICT_SCHEMA

    def settings(self) -> dict[str, Any]:
        """With the revisions of suites and detector: a verdict that means something else has another key."""
        from stages.evaluate.detector_pixels import REVISION

        return super().settings() | {"suites": revisions(), "detector": f"pixels@{REVISION}"}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Answer by answer."""
        return [self._judged(row) for row in rows]

    def _judged(self, row: Row) -> Outcome:
        evidence, judge = _evidence(row)
        return [verdict_row(row, evidence, judge)]


def _evidence(row: Row) -> tuple[Mapping[str, Any], str]:
    from stages.evaluate.answering import shown

    if row["evidence"] == "words":
        return {"text": row["text"]}, "arithmetic"
    if row["media"] is None:
        raise BadRow("It is a text, and its suite judges pictures: correct what the suite asks.")
    frames_THW3 = shown(row["media"])
    if row["evidence"] == "pixels":
        return {"frames": frames_THW3}, "arithmetic"
    from stages.evaluate.detector_pixels import REVISION, detected

    return detected(frames_THW3[0]), f"pixels@{REVISION}"
