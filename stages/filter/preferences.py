"""What people would say of a clip and its own caption; and the scores of clips with it, for clauses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages import media, weights
from stages.base import BadRow, Edge, Job, JobStage, Kit, Outcome, Row, RowStage
from stages.filter.distinct import Distinct

SCORERS = ("hps", "mps")
_SHORT_SIDE = 256
_NUM_SHOTS = 3
_COLUMNS = [f for f in Distinct.schema if f.name not in ("fingerprints", "embedding")]
_PREFERENCE = [pa.field(name, pa.float64(), nullable=True) for name in SCORERS]


@dataclass(frozen=True, kw_only=True)
class Preferences(RowStage):
    """How much people would like a clip as the picture of its caption.

    hps, mps   100 times the cosine of picture and caption, about 20 to 35: the least over the middles of the clip's
               thirds; null for a scorer without weights
    """

    writes: ClassVar[str] = "preferences"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("captions", columns=("text",), parent=("clips", ("media", "source_kind", "num_frames"))),
    )
    schema: ClassVar[pa.Schema] = pa.schema(_PREFERENCE)

    weights: Mapping[str, str | None] = field(default_factory=dict)
    """Weights of hps, mps or both: a local folder or a hub id."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(SCORERS)):
            raise UserError(
                f"{unknown[0]!r} is no scorer of preference: preferences.weights takes {', '.join(SCORERS)}"
            )

    def settings(self) -> dict[str, Any]:
        """Weights by what they are, not by where they lie."""
        return {"weights": {name: weights.named(place) for name, place in sorted(self.weights.items()) if place}}

    def setup(self, kit: Kit) -> Any:
        """The models."""
        from stages.filter.preference import Preference

        return {name: Preference(place) for name, place in self.weights.items() if place}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Each model is asked about all pictures of all rows at once."""
        shots = [_shots(row["parent"]) for row in rows]
        pictures = [picture for shown in shots if not isinstance(shown, BadRow) for picture in shown]
        texts = [row["text"] for row, s in zip(rows, shots, strict=True) if not isinstance(s, BadRow) for _ in s]
        scored = {name: model.scores(pictures, texts) if pictures else [] for name, model in tools.items()}
        outcomes: list[Outcome] = []
        at = 0
        for shown in shots:
            if isinstance(shown, BadRow):
                outcomes.append(shown)
                continue
            part = slice(at, at := at + len(shown))
            outcomes.append([dict.fromkeys(SCORERS) | {name: min(found[part]) for name, found in scored.items()}])
        return outcomes


def _shots(clip: Row) -> Any:
    try:
        return media.evenly(clip["media"], clip["source_kind"], clip["num_frames"], _NUM_SHOTS, _SHORT_SIDE)
    except BadRow as bad:
        return bad


@dataclass(frozen=True, kw_only=True)
class Preferred(JobStage):
    """The scores of every clip again, and beside them its preference, for clauses that want a mean of all.

    hps, mps   mean over the captions of the clip; null where it has none
    """

    writes: ClassVar[str] = "preferred"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("distinct"), Edge("captions"), Edge("preferences", columns=SCORERS))
    schema: ClassVar[pa.Schema] = pa.schema([*_COLUMNS, *_PREFERENCE])

    def run(self, job: Job) -> Iterator[Row]:
        """One row per clip with scores."""
        clip_of = dict(_pairs(job, "captions"))
        found: dict[bytes, list[Row]] = {}
        for batch in job.reader("preferences").scan(["parents", *SCORERS]):
            for row in batch.to_pylist():
                if (clip := clip_of.get(row["parents"][0])) is not None:
                    found.setdefault(clip, []).append(row)
        for batch in job.reader("distinct").scan(["key", "label", "parents", *(f.name for f in _COLUMNS)]):
            for row in batch.to_pylist():
                clip, scores = row["parents"][0], row.pop("key")
                rows = found.get(clip, [])
                told = {name: [one[name] for one in rows if one[name] is not None] for name in SCORERS}
                means = {name: sum(some) / len(some) if some else None for name, some in told.items()}
                yield row | means | {"parents": [clip, scores]}


def _pairs(job: Job, dataset: str) -> Iterator[tuple[bytes, bytes]]:
    """(key, first parent) of each row."""
    for batch in job.reader(dataset).scan(["key", "parents"]):
        yield from zip(batch["key"].to_pylist(), (p[0] for p in batch["parents"].to_pylist()), strict=True)
