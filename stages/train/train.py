"""Train the any-to-any model on the packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from models.flops import TrunkShape
from models.layout import Format
from models.recipe import Parts
from stages import weights
from stages.base import AS_BEFORE, Edge, Job, JobStage, Row, above_zero
from stages.train.phases import check_phases
from stages.train.stream import Stream
from stages.workers.fit import fit, num_that_divide

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

    A checkpoint holds model.safetensors and config.json, all that is needed to use the model, and what training goes on
    from (stages/train/checkpoint.py).
    """

    writes: ClassVar[str] = "model"
    revision: ClassVar[int] = 3
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("packs", columns=("tokens", "loss_weights", "segments", "order", "phase", "format")),
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
    phases: Mapping[str, int] = field(default_factory=dict, metadata={AS_BEFORE: {}})
    """Optimizer steps of each phase of the packs, in the packs' order; their sum is `steps`. A phase reads its packs in
    their order and, from its second epoch on, permuted. Empty: one stream over all packs."""
    phase_learning_rates: Mapping[str, float] = field(default_factory=dict, metadata={AS_BEFORE: {}})
    """Peak of each phase, which then has a warm-up and a schedule of its own. Empty: one schedule over all steps, up
    to `learning_rate`."""
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
    """Weights to begin with, of the same sizes and settings. A published decoder, a folder or an id of the hub (Llama,
    Qwen2, Qwen3, Emu3, Chameleon): its blocks, and its rows of the texts' ids; the text tokenizer must be its own. Or
    the folder of a checkpoint of ours: all of it, rows of texts and codes by what they mean (models/grow.py). The key
    has what lies in the folder, not where."""
    qkv_bias: bool = False
    """Biases of queries, keys and values (Qwen2)."""
    rope_base: float = 10_000.0
    """Of the rotary positions."""
    rope_shares: tuple[int, ...] = ()
    """With parts.positions=scales: shares of the rotary frequencies that listen to row, column and scale."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; bf16 keeps master weights, sums of gradients and moments in fp32."""
    spike_sigma: float | None = None
    """Skip a step whose loss or gradient norm lies so many deviations above the last 128 steps' mean; unset: never."""
    keep: int | None = None
    """Checkpoints that stay: the last so many, and the one of the lowest loss. Unset: all."""
    seed: int = 0
    """Of the first weights, of dropout, of the order after the first epoch."""

    def __post_init__(self) -> None:
        if (self.parts.positions == "scales") != bool(self.rope_shares):
            raise UserError("model.rope_shares belongs to model.parts.positions=scales: set both, or neither")
        above_zero(self, "steps", "global_batch", "learning_rate", "clip", "rope_base", "checkpoint_every")
        check_phases(self.phases, self.steps, self.phase_learning_rates)

    def settings(self) -> dict[str, Any]:
        """Weights by what they are, not by where they lie."""
        return super().settings() | {"init": weights.named(self.init) if self.init else None}

    def run(self, job: Job) -> Iterator[Row]:
        """Train what is not yet trained, then list the checkpoints."""
        packs = job.reader("packs")
        if not len(packs):
            return
        if self.phases:
            Stream(packs, self.global_batch, self.seed, self.phases)  # refuses other phases than the packs have
        last = job.checkpoints.latest()
        if last is None or last.step < self.steps:
            from stages.train.loader import described
            from stages.train.loop import train_worker

            form = Format.from_json(packs.take([0], ["format"])["format"][0].as_py())
            self._check_init(form)
            config = {
                "stage": self,
                "packs": packs,
                "checkpoints": job.checkpoints,
                "form": form,
                "code_vectors": self._code_vectors(job),
                "training": job.training,
                "profile": job.profile,
                "log_every": LOG_EVERY,
            }
            fit(
                job,
                train_worker,
                config,
                name="model",
                workers=num_workers(self.global_batch, job.num_workers, job.training.sequence_ranks),
                steps=self.steps,
                said=said,
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

    def _check_init(self, form: Format) -> None:
        """A checkpoint that does not fit is refused here, before workers start and fail one after the other."""
        from models.grow import is_ours, must_fit
        from stages.train.build import trunk_config

        if self.init and is_ours(self.init):
            try:
                must_fit(trunk_config(self, form), self.parts, form, self.init)
            except ValueError as error:
                raise UserError(f"model.init: {error}") from error

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


def said(metrics: Mapping[str, float]) -> str:
    """A step's metrics in the progress line."""
    return f"steps, loss {metrics['loss']:.3f}, {metrics['tokens_per_s']:,.0f} tokens/s, MFU {metrics['mfu']:.0%}"


def num_workers(packs: int, there: int, sequence_ranks: int) -> int:
    """The most workers, of those that are there, whose groups of so many share the packs of a step evenly."""
    if there < sequence_ranks:
        raise UserError(f"training.sequence_ranks={sequence_ranks} needs as many workers, model has {there}: set cluster.stages.model.workers")  # fmt: skip  # noqa: E501
    return sequence_ranks * num_that_divide(packs, there // sequence_ranks)
