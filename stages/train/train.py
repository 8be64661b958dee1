"""Train the any-to-any model on the packs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from models.flops import TrunkShape
from models.layout import Format
from models.recipe import Parts
from stages.base import Edge, Job, JobStage, Row, above_zero
from stages.workers import fit, num_that_divide

LOG_EVERY = 10
"""Steps between logged metrics; it changes no result, so it is no setting."""


@dataclass(frozen=True, kw_only=True)
class Model(JobStage):
    """Trains the model on the packs: next tokens, next scales, noise, as the packs' layout and `parts` say.

    Ray Train starts the workers, DeepSpeed ZeRO runs inside (stages/train/loop.py). A step reads `global_batch` packs,
    spread over the workers; the loss is the weighted sum over all of them divided by their weight, so neither the
    number of workers nor the shape of packs bends it. A worker that dies, or a driver, costs the steps since the last
    checkpoint and nothing else: the run goes on with the same data and the same optimizer, under any number of workers
    that divides `global_batch`. Where it is asked to stop it saves first. Yields one row per published checkpoint.

    A checkpoint holds model.safetensors and config.json (all that is needed to use the model) and
    optimizer.safetensors (to go on training).
    """

    writes: ClassVar[str] = "model"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("packs", columns=("tokens", "loss_weights", "segments", "order", "format")),
        Edge("tokenizer", role="side"),
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
    parts: Parts
    """What stands around it: embedders, positions, heads, objectives."""
    steps: int
    """Optimizer steps."""
    global_batch: int = 4
    """Packs a step."""
    learning_rate: float = 3e-3
    """Peak of AdamW's."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From the peak, after the warm-up."""
    final_learning_rate: float = 0.0
    """At the last step, but for a constant schedule."""
    warmup: int = 20
    """Steps of linear warm-up."""
    frozen: tuple[str, ...] = ()
    """Patterns of names of parameters that are not trained, as trunk.* in the first stage of Janus."""
    weight_decay: float = 0.1
    """On matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    dropout: float = 0.0
    """On the embedding, residual branches and attention, 0 to 1."""
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    """Normalise queries and keys: rms as Qwen3, layer as Chameleon."""
    norm: Literal["before", "after"] = "before"
    """Normalise what goes into attention and feed-forward, or what comes out (Chameleon 34B)."""
    tied: bool = False
    """One matrix for embedding and head (Qwen2 up to 3B)."""
    norm_eps: float = 1e-5
    """Of every RMSNorm (Qwen2 and Qwen3: 1e-6)."""
    init: str | None = None
    """A published decoder to begin with, a folder or an id of the hub, of the same sizes and settings (Llama, Qwen2,
    Qwen3, Emu3, Chameleon): its blocks, and its rows of the texts' ids; the text tokenizer must be its own."""
    qkv_bias: bool = False
    """Biases of queries, keys and values (Qwen2)."""
    rope_base: float = 10_000.0
    """Of the rotary positions."""
    rope_shares: tuple[int, ...] = ()
    """With parts.positions=scales: shares of the rotary frequencies that listen to row, column and scale."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    zero_stage: int = 2
    """Of DeepSpeed: 1 shards the optimizer, 2 the gradients too."""
    seed: int = 0
    """Of the first weights, of dropout, of the order after the first epoch."""

    def __post_init__(self) -> None:
        if (self.parts.positions == "scales") != bool(self.rope_shares):
            raise UserError("model.rope_shares belongs to model.parts.positions=scales: set both, or neither")
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
            from stages.train.loader import described
            from stages.train.loop import train_worker

            form = Format.from_json(packs.take([0], ["format"])["format"][0].as_py())
            config = {
                "stage": self,
                "packs": packs,
                "checkpoints": job.checkpoints,
                "form": form,
                "code_vectors": self._code_vectors(job),
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
                named=lambda rows: described(packs, rows),
            )
        published = [one for one in job.checkpoints.all() if self.publishes(one.step)]
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

    def publishes(self, step: int) -> bool:
        """Whether the checkpoint of a step becomes a row. One that is saved because training was stopped does not, so
        that an interrupted training publishes what an undisturbed one does."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def _code_vectors(self, job: Job) -> Any:
        """The tokenizer's codebook (K, D), where the settings want it; else None."""
        if self.parts.code_vectors == "drawn" and self.parts.code_head == "shared":
            return None
        from models.tokenizers.interface import load_tokenizer

        found = load_tokenizer(job.checkpoint("tokenizer")).code_vectors()
        if found is None:
            raise UserError(
                "the tokenizer has no codebook to begin embeddings at: set model.parts.code_vectors=drawn and"
                " model.parts.code_head=shared"
            )
        return found.detach().cpu().float()
