"""From scores to verdicts with duplicates: of clips that look alike one is kept, and named in the others' rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import alike
from stages.base import Edge, Job, JobStage, Row
from stages.filter.score import Scores


@dataclass(frozen=True, kw_only=True)
class Distinct(JobStage):
    """The scores of every clip again, and beside them what only the whole set can tell.

    passes        whether the clip passes the select that this stage stands behind
    duplicate_of  key of the clip that stands for it; null where it stands for itself. Among clips that pass, the
                  largest stands for the others, then the one of best technical quality. Clips that do not pass stand
                  for nobody and are stood for by nobody: a bad copy never takes a good one with it
    likeness      share of like frames, or cosine; null where there is no duplicate
    family        number of clips that this one stands for, itself included; 0 where another does

    Alike are two videos when at least `min_share` of the frames looked at of the shorter have one in the other whose
    hashes differ in at most `max_bits` of 64 and whose colours in at most `max_colour`, two images likewise; and,
    where the scores hold embeddings, clips of a cosine of at least `min_cosine`. Plain pictures have no hash and are
    nobody's copies. The result does not depend on the order of rows. All hashes are compared with all: 10^5 distinct
    ones take about 10 s.

    A select over this dataset, with `duplicate_of is null` among its clauses, leaves one of each family.
    """

    writes: ClassVar[str] = "distinct"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("clips", columns=("digest",)), Edge("scores"))
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            *Scores.schema,
            ("passes", pa.bool_()),
            pa.field("duplicate_of", pa.binary(16), nullable=True),
            pa.field("likeness", pa.float64(), nullable=True),
            ("family", pa.int64()),
        ]
    )

    max_bits: int = 10
    """Bits of 64 in which hashes of copies differ at most (imagededup's bound); unrelated pictures differ in 32."""
    max_colour: int = 40
    """Levels (of 255) by which no cell of a 4 x 4 grid of mean colours may differ between copies: codecs and blur stay
    below 30. Plain drawings that differ in the shape of one small thing are still taken for copies (tests: 2 %)."""
    min_share: float = 0.5
    """Share of the frames of the shorter clip that must be found in the other."""
    min_cosine: float = 0.97
    """Cosine of embeddings from which clips are copies; above 1: embeddings do not matter."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bits < 64 or not 0 < self.min_share <= 1:
            raise UserError("distinct.max_bits is 0 to 63, distinct.min_share above 0 and at most 1: change them")

    def bounds(self) -> alike.Bounds:
        """When two clips are alike."""
        return alike.Bounds(self.max_bits, self.max_colour, self.min_share, self.min_cosine)

    def run(self, job: Job) -> Iterator[Row]:
        """One row per clip with scores, in order of its key."""
        passing = {key for batch in job.reader("clips").scan(["key"]) for key in batch["key"].to_pylist()}
        rows = [row for batch in job.reader("scores").scan(_COLUMNS) for row in batch.to_pylist()]
        for row in rows:
            row["clip"] = row["parents"][0]
        rows.sort(key=lambda row: row["clip"])
        looks = [
            alike.look(row["clip"], row["source_kind"], row["fingerprints"], row["embedding"], _rank(row))
            for row in rows
            if row["clip"] in passing
        ]
        stood_for = alike.representatives(looks, self.bounds())
        sizes: dict[bytes, int] = {}
        for key, _ in stood_for.values():
            sizes[key] = sizes.get(key, 0) + 1
        job.summary({"clips": len(rows), "passing": len(passing), "duplicates": len(stood_for), "families": len(sizes)})
        for row in rows:
            clip, scores = row.pop("clip"), row.pop("key")
            other, likeness = stood_for.get(clip, (None, None))
            family = 0 if other else sizes.get(clip, 0) + 1
            yield row | {
                "passes": clip in passing,
                "duplicate_of": other,
                "likeness": likeness,
                "family": family,
                "parents": [clip, scores],
            }


_COLUMNS = ["key", "label", "parents", *Scores.schema.names]


def _rank(row: Row) -> tuple[float, ...]:
    return (-row["short_side"], -round(row["quality"], 3), -row["duration_s"])
