"""Train the any-to-any model on the packs."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import RunError, StoppedError, UserError
from models.flops import TrunkShape
from models.vocabulary import Vocabulary
from stages.base import Edge, Job, JobStage, Row, above_zero

_MAX_FAILURES = 3
"""Times the workers are started again after one died, each time from the last checkpoint."""
_POLL_S = 0.5
_STOP_S = 8.0
"""How long workers may take to stop between two steps before they are left to end with the driver, as they are when
they have not begun to step."""
LOG_EVERY = 10
"""Steps between logged metrics; it changes no result, so it is no setting."""


class MetricSink:
    """A Ray actor between rank 0 and the driver: holds what was measured, and the wish to stop."""

    def __init__(self) -> None:
        self._held: list[tuple[int, dict[str, float]]] = []
        self._stopping = False

    def stop(self) -> None:
        """From now on the workers are to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they are to stop."""
        return self._stopping

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        self._held.append((step, metrics))

    def drain(self) -> list[tuple[int, dict[str, float]]]:
        """Hand out and forget."""
        held, self._held = self._held, []
        return held


def _leave(thread: threading.Thread, sink: Any, wait_s: float) -> None:
    """Let the workers stop between two steps, all of them at the same one; what is saved is kept."""
    deadline = time.monotonic() + wait_s
    while thread.is_alive() and time.monotonic() < deadline:
        sink.stop.remote()  # again each time: the actor may have been started anew
        thread.join(_POLL_S)


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
    qk_norm: bool = True
    """Normalise queries and keys."""
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
            vocabulary = Vocabulary.from_json(packs.take([0], ["vocabulary"])["vocabulary"][0].as_py())
            self._fit(job, vocabulary)
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

    def _fit(self, job: Job, vocabulary: Vocabulary) -> None:
        """Run Ray Train in a thread, and meanwhile hand metrics to the job from this one."""
        import ray
        from ray.exceptions import RayError

        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(MetricSink)
        sink = actor.remote()
        failed: list[BaseException] = []
        trainer = self._trainer(job, vocabulary, sink)

        def fit() -> None:
            from ray.train import TrainingFailedError

            try:
                trainer.fit()
            except (TrainingFailedError, RayError) as error:
                failed.append(error)

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        alive, heard = True, False
        while alive:
            thread.join(_POLL_S)
            alive = thread.is_alive()
            if job.stopping():
                _leave(thread, sink, _STOP_S if heard else 0.0)
                break
            for step, metrics in ray.get(sink.drain.remote()):
                heard = True
                job.log(step, metrics)
                job.progress(step, self.steps, f"steps, loss {metrics['loss']:.3f}")
        ray.kill(sink)
        if job.stopping():
            job.progress(getattr(job.checkpoints.latest(), "step", 0), self.steps, "stopped")  # raises in its own words
            raise StoppedError("training was stopped: the same command goes on from the last checkpoint")
        if failed:
            cause = str(failed[0]).strip().splitlines()[-1]
            raise RunError(
                f"training failed {_MAX_FAILURES + 1} times, last with: {cause}; the same command goes on from step"
                f" {getattr(job.checkpoints.latest(), 'step', 0)}"
            ) from failed[0]

    def _trainer(self, job: Job, vocabulary: Vocabulary, sink: Any) -> Any:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from stages.train.loop import train_worker

        workers = max(n for n in range(1, max(1, job.num_workers) + 1) if self.global_batch % n == 0)
        on_gpu = ray.cluster_resources().get("GPU", 0) >= workers
        return TorchTrainer(
            train_worker,
            train_loop_config={
                "stage": self,
                "packs": job.reader("packs"),
                "checkpoints": job.checkpoints,
                "vocabulary": vocabulary,
                "sink": sink,
                "log_every": LOG_EVERY,
            },
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
            run_config=RunConfig(
                name=f"model-{uuid.uuid4().hex[:8]}",
                storage_path=str(job.scratch.resolve() / "ray-train"),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
