"""The clips that a pipeline's select chooses for one purpose, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.base import Edge, Outcome, Row, RowStage


@dataclass(frozen=True, kw_only=True)
class FineTune(RowStage):
    """Clips good enough for quality fine-tuning: one row per clip that passes the select before it, without its media.

    What passes is decided by clauses (`select.finetune_...`): resolution, motion, and the mean of the scorers.
    """

    writes: ClassVar[str] = "finetune"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("clips", columns=("source_kind", "digest", "held_out")),)
    schema: ClassVar[pa.Schema] = pa.schema(
        [("source_kind", pa.string()), ("digest", pa.string()), ("held_out", pa.bool_())]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Pass each clip on."""
        return [[{name: row[name] for name in ("source_kind", "digest", "held_out")}] for row in rows]
