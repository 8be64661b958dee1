"""Judging what needs no one else: pixels, words, and what a detector sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import pyarrow as pa

from stages.base import Edge, Kit, Outcome, Row, RowStage
from stages.evaluate.judge import Itself, Judge
from stages.evaluate.judging import ANSWER_COLUMNS, VERDICT_SCHEMA, verdicts_of
from stages.evaluate.suites import revisions


@dataclass(frozen=True, kw_only=True)
class Verdicts(RowStage):
    """One verdict per answer whose evidence this machine can find by itself.

    pixels, words   the answer itself, nothing but arithmetic: the judge is called "measured"
    objects         of a detector without weights, which knows the shapes of the sample corpus: "pixels@REVISION"
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

    def setup(self, kit: Kit) -> dict[str, Judge]:
        """Judges by the evidence that they give."""
        from stages.evaluate.judge_pixels import PixelDetector

        return {"pixels": Itself("pixels"), "words": Itself("words"), "objects": PixelDetector()}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Answers of one kind together."""
        kinds = groupby(rows, key=lambda row: row["evidence"])
        return [outcome for kind, alike in kinds for outcome in verdicts_of(list(alike), tools[kind])]
