"""Train the any-to-any model on the packs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from models.flops import TrunkShape
from models.vocabulary import Vocabulary
from stages.base import Edge, Job, JobStage, Row, above_zero
from stages.workers import fit, num_that_divide

LOG_EVERY = 10
"""Steps between logged metrics; it changes no result, so it is no setting."""


@dataclass(frozen=True, kw_only=True)
class Model(JobStage):
    """Trains the decoder by next-token prediction over text and visual codes (Emu3, arXiv 2409.18869).

    Ray Train starts the workers, DeepSpeed ZeRO runs inside (stages/train/loop.py). A step reads `global_batch` packs,
    spread over the workers; the loss is the weighted sum over all of them divided by their weight, so neither the
    number of workers nor the shape of packs bends it. A worker that dies, or a driver, costs the steps since the last
    checkpoint and nothing else: the run goes on with the same data and the same optimizer, under any number of workers
    that divides `global_batch`. Yields one row per published checkpoint.

    A checkpoint holds model.safetensors and config.json (all that is needed to use the model) and
    optimizer.safetensors (to go on training).
    """

    writes: ClassVar[str] = "model"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("packs", columns=("tokens", "loss_weights", "segments", "order", "vocabulary")),
    )
    content: ClassVar[tuple[str, ...] | None] = ("files_sha256",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("step", pa.int64()),
            ("tokens_seen", pa.int64()),
            ("loss", pa.float64()),
            ("manifest", pa.string()),
            ("manifest_sha256", pa.string()),
            ("files_sha256", pa.string()),
            ("packs", pa.int64()),
        ]
    )

    trunk: TrunkShape
    """Sizes of the decoder."""
    steps: int
    """Optimizer steps."""
    global_batch: int = 4
    """Packs a step."""
    learning_rate: float = 3e-3
    """Peak of AdamW's; warm-up, then a cosine to zero."""
    warmup: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """On matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    dropout: float = 0.0
    """On the embedding, residual branches and attention, 0 to 1."""
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    """Normalise queries and keys: rms as Qwen3, layer as Chameleon."""
    rope_base: float = 10_000.0
    """Of the rotary positions."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    zero_stage: int = 2
    """Of DeepSpeed: 1 shards the optimizer, 2 the gradients too."""
    seed: int = 0
    """Of the first weights, of dropout, of the order after the first epoch."""

    def __post_init__(self) -> None:
        above_zero(self, "steps", "global_batch", "learning_rate", "clip", "rope_base", "checkpoint_every")
        if self.zero_stage not in (1, 2):
            raise UserError(f"model.zero_stage is {self.zero_stage}; 1 and 2 are supported, set model.zero_stage=2")

    def run(self, job: Job) -> Iterator[Row]:
        """Train what is not yet trained, then list the checkpoints."""
        packs = job.reader("packs")
        if not len(packs):
            return
        last = job.checkpoints.latest()
        if last is None or last.step < self.steps:
            from stages.train.loop import train_worker

            config = {
                "stage": self,
                "packs": packs,
                "checkpoints": job.checkpoints,
                "vocabulary": Vocabulary.from_json(packs.take([0], ["vocabulary"])["vocabulary"][0].as_py()),
                "log_every": LOG_EVERY,
            }
            fit(
                job,
                train_worker,
                config,
                name="model",
                workers=num_that_divide(self.global_batch, job.num_workers),
                steps=self.steps,
                said=lambda metrics: f"steps, loss {metrics['loss']:.3f}",
            )
        published = job.checkpoints.all()
        job.summary({"loss": published[-1].facts["loss"], "tokens_seen": published[-1].facts["tokens_seen"]})
        for checkpoint in published:
            yield {
                "step": checkpoint.step,
                "tokens_seen": checkpoint.facts["tokens_seen"],
                "loss": checkpoint.facts["loss"],
                "manifest": checkpoint.manifest,
                "manifest_sha256": checkpoint.manifest_sha256,
                "files_sha256": checkpoint.files_sha256,
                "packs": checkpoint.facts["packs"],
                "parents": [],
                "label": f"model step {checkpoint.step}",
            }
