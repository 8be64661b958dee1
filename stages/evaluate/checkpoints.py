"""The checkpoints that are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import Edge, Job, JobStage, Row


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One checkpoint of a model, with the tokenizers that it was trained on."""

    files_sha256: str
    """Names the weights."""
    checkpoint: str
    """Its manifest."""
    checkpoint_sha256: str
    training: str
    """Key of the materialisation that it belongs to."""
    begun: str
    """When that was begun (ISO 8601, UTC)."""
    step: int
    pixels: int
    """Side of the pictures that it was trained on."""
    tokenizer: str
    tokenizer_sha256: str
    text_tokenizer: str
    text_tokenizer_sha256: str
    """Manifests, and their SHA-256."""
    data: str
    """Snapshots of captions, indices and texts that it was trained on, by name (JSON)."""

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.training[:8]} step {self.step}"

    @property
    def short(self) -> str:
        """What people type for it."""
        return f"{self.training[:8]}/step-{self.step:06d}"


@dataclass(frozen=True, kw_only=True)
class Checkpoints(JobStage):
    """One row per checkpoint that is to have scores, as the engine found them in the root (pipelines/evaluate.py).

    Rows are named by the weights: a checkpoint that is listed again, or made again with the same bits, costs nothing.
    """

    writes: ClassVar[str] = "checkpoints"
    inputs: ClassVar[tuple[Edge, ...]] = ()
    content: ClassVar[tuple[str, ...] | None] = ("files_sha256",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("files_sha256", pa.string()),
            ("checkpoint", pa.string()),
            ("checkpoint_sha256", pa.string()),
            ("training", pa.string()),
            ("begun", pa.string()),
            ("step", pa.int64()),
            ("pixels", pa.int64()),
            ("tokenizer", pa.string()),
            ("tokenizer_sha256", pa.string()),
            ("text_tokenizer", pa.string()),
            ("text_tokenizer_sha256", pa.string()),
            ("data", pa.string()),
        ]
    )

    listed: tuple[Listed, ...] = ()
    """In the order of trainings and steps."""

    def run(self, job: Job) -> Iterator[Row]:
        """As they are listed; `plait evaluate` lists them."""
        if not self.listed:
            raise UserError("no checkpoint is listed: `plait evaluate` finds those of a root; one step again alone is --only STEP --force")  # fmt: skip  # noqa: E501
        for one in self.listed:
            yield {**asdict(one), "parents": [], "label": one.label}
