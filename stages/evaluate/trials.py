"""Every checkpoint before every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.base import Edge, Kit, Outcome, Row, RowStage, blob

CHECKPOINT_COLUMNS = (
    "files_sha256", "checkpoint", "checkpoint_sha256", "training", "step", "pixels", "tokenizer", "tokenizer_sha256",
    "text_tokenizer", "text_tokenizer_sha256",
)  # fmt: skip
_QUESTION_COLUMNS = ("question", "suite", "task", "prompt", "about", "given", "asks", "evidence", "how")
GIVEN = pa.field("given", pa.large_binary(), nullable=True, metadata=blob("given").metadata)
"""A picture (png) that is asked about; its bytes are read only where they are asked for."""
TRIAL_COLUMNS = (*CHECKPOINT_COLUMNS, "index", *_QUESTION_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Trials(RowStage):
    """One row per answer that is wanted: a checkpoint, a question, and which of the answers to it.

    Rows are named by weights, question and number: another suite, more samples or another checkpoint add rows and leave
    the others as they are. What follows compares rows, so every pair is worked on once, however often it is asked for.
    """

    writes: ClassVar[str] = "trials"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("checkpoints", columns=CHECKPOINT_COLUMNS),
        Edge("questions", role="side"),
    )
    content: ClassVar[tuple[str, ...] | None] = ("question", "index")
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("files_sha256", pa.string()),
            ("checkpoint", pa.string()),
            ("checkpoint_sha256", pa.string()),
            ("training", pa.string()),
            ("step", pa.int64()),
            ("pixels", pa.int64()),
            ("tokenizer", pa.string()),
            ("tokenizer_sha256", pa.string()),
            ("text_tokenizer", pa.string()),
            ("text_tokenizer_sha256", pa.string()),
            ("question", pa.string()),
            ("index", pa.int64()),
            ("suite", pa.string()),
            ("task", pa.string()),
            ("prompt", pa.string()),
            ("about", pa.string()),
            GIVEN,
            ("asks", pa.string()),
            ("evidence", pa.string()),
            ("how", pa.string()),
        ]
    )

    def setup(self, kit: Kit) -> list[Row]:
        """The questions."""
        return kit.rows("questions", ["samples", "label", *_QUESTION_COLUMNS]).to_pylist()

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Question by question, so that rows that lie together want the same of the same checkpoint."""
        return [[_trial(row, one, index) for one in tools for index in range(one["samples"])] for row in rows]


def _trial(checkpoint: Row, question: Row, index: int) -> Row:
    return {
        **{name: checkpoint[name] for name in CHECKPOINT_COLUMNS},
        **{name: question[name] for name in _QUESTION_COLUMNS},
        "index": index,
        "label": f"{checkpoint['label']}, {question['label']}, {index}",
    }
