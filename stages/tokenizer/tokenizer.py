"""Train the vision tokenizer on frames of the selected clips, or take one that is published."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from models.tokenizers import shapes
from models.tokenizers.shapes import NextFlowShape, PublishedShape, Shape
from stages import weights
from stages.base import Edge, Job, JobStage, Row, above_zero
from stages.frames import View
from stages.workers.fit import fit, num_that_divide

LOG_EVERY = 20
"""Steps between logged metrics; it changes no result, so it is no setting."""
PHASES = {"nextflow": ("pixel", "joint", "decoder")}
"""What the parts of a training are called, in their order; of every other kind there is one, "all"."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer(JobStage):
    """Trains a vision tokenizer (models/tokenizers/) on frames of the clips that are not held out.

    Ray Train starts the workers (stages/tokenizer/loop.py). Each step's frames are a pure function of seed and step,
    spread over the workers, and the codebook learns from all of them together: neither the number of workers nor a
    restart changes what is trained. Held-out clips are only measured: PSNR, SSIM, and how well the codebook is used.
    A clip that does not decode is rejected with the reason. Yields one row: the final checkpoint.

    A published tokenizer is not trained: its weights become a checkpoint, measured like any other.
    """

    writes: ClassVar[str] = "tokenizer"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "fps", "held_out"), held=True),
    )
    content: ClassVar[tuple[str, ...] | None] = ("files_sha256",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("step", pa.int64()),
            ("manifest", pa.string()),
            ("manifest_sha256", pa.string()),
            ("files_sha256", pa.string()),
            ("kind", pa.string()),
            ("codebook_size", pa.int32()),
            pa.field("psnr", pa.float64(), nullable=True),
            pa.field("ssim", pa.float64(), nullable=True),
            pa.field("perplexity", pa.float64(), nullable=True),
            pa.field("usage", pa.float64(), nullable=True),
        ]
    )

    shape: Shape
    """Which tokenizer, and its sizes: `shape.kind` is vq, emu3, nextflow, vae or published."""
    phases: Mapping[str, int]
    """Optimizer steps of each phase: {all: 2000}, or, of nextflow, {pixel: 600, joint: 1000, decoder: 400}."""
    size: int
    """Frames are scaled to this short side and cut square (pixels)."""
    frames_per_clip: int
    """Frames taken of a film, a multiple of what one code stands for in time; a still is one."""
    fps: float | None = None
    """Frames a second; unset: `frames_per_clip` spread over the film."""
    cover: Literal["whole", "middle"] = "whole"
    """Whether frames are spread over the whole film or stand together in its middle, `fps` a second."""
    frames_per_sample: int = 1
    """Neighbouring ones of these frames that make one sample, a multiple of what one code stands for in time."""
    batch: int = 16
    """Samples a step."""
    learning_rate: float = 3e-3
    """Peak of Adam's, in each phase: 50 steps of warm-up, then linear to a hundredth."""
    clip: float = 1.0
    """Largest norm of the gradient (TokenFlow: 1)."""
    l1: float = 1.0
    """Weight of the mean absolute error of pixels in -1..1."""
    l2: float = 1.0
    """Weight of the mean squared error."""
    lpips: float = 0.0
    """Weight of LPIPS (arXiv 1801.03924); needs `lpips_weights`."""
    lpips_weights: str | None = None
    """Folder with VGG16's and LPIPS' weights (models/tokenizers/losses.py); where given, LPIPS is measured as well."""
    gan: float = 0.0
    """Weight of the adversarial loss of a patch discriminator (arXiv 2012.09841); TokenFlow and LlamaGen: 0.5."""
    gan_from: int = 20_000
    """First step at which it counts."""
    max_measured: int = 256
    """Most held-out clips that are measured, in order of key."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        above_zero(
            self, "size", "frames_per_clip", "frames_per_sample", "batch", "learning_rate", "clip", "checkpoint_every"
        )
        allowed = () if self.shape.kind == "published" else PHASES.get(self.shape.kind, ("all",))
        for name, steps in self.phases.items():
            if name not in allowed or steps < 0:
                raise UserError(
                    f"tokenizer.phases has {name}={steps}: a tokenizer of kind {self.shape.kind} has steps for"
                    f" {', '.join(allowed) or 'no phase, it is taken as it is'}"
                )
        if allowed and not sum(self.phases.values()):
            raise UserError(f"tokenizer.phases has no steps: write tokenizer.phases.{allowed[0]}=NUMBER")
        if self.lpips and not self.lpips_weights:
            raise UserError("tokenizer.lpips needs weights: write tokenizer.lpips_weights=DIR")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(self.phases.values())

    def settings(self) -> dict[str, Any]:
        """Weights by what they are, not by where they lie."""
        said = super().settings() | {"shape": shapes.plain(self.shape)}
        if isinstance(self.shape, PublishedShape):
            said["shape"]["place"] = weights.named(self.shape.place)
        if isinstance(self.shape, NextFlowShape) and self.shape.teacher:
            said["shape"]["teacher"] = weights.named(self.shape.teacher)
        return said | {"lpips_weights": weights.named(self.lpips_weights) if self.lpips_weights else None}

    def phase_at(self, step: int) -> tuple[int, str, int, int]:
        """(number, name, its first step, the step after its last) of the phase that a step belongs to."""
        first = 0
        names = [name for name in PHASES.get(self.shape.kind, ("all",)) if self.phases.get(name)]
        for number, name in enumerate(names):
            last = first + self.phases[name]
            if step < last or number == len(names) - 1:
                return number, name, first, last
            first = last
        return 0, "all", 0, 0

    def in_turn(self, step: int) -> bool:
        """Whether a step's checkpoint is saved and measured though nobody asked to stop."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def view(self) -> View:
        """How a clip is looked at."""
        return View(size=self.size, frames=self.frames_per_clip, fps=self.fps, cover=self.cover)

    def run(self, job: Job) -> Iterator[Row]:
        """Train what is not yet trained, then name the final checkpoint."""
        clips = job.reader("clips")
        last = job.checkpoints.latest()
        if last is None or last.step < self.steps:
            if isinstance(self.shape, PublishedShape):
                self._take(job)
            elif not _some_to_train_on(clips):
                return
            else:
                from stages.tokenizer.loop import train_worker
                from stages.tokenizer.samples import described

                fit(
                    job,
                    train_worker,
                    {
                        "stage": self,
                        "clips": clips,
                        "checkpoints": job.checkpoints,
                        "training": job.training,
                        "log_every": LOG_EVERY,
                    },
                    name="tokenizer",
                    workers=num_that_divide(self.batch, job.num_workers),
                    steps=self.steps,
                    said=lambda metrics: f"tokenizer steps, error {metrics['error']:.4f}",
                    named=lambda rows: described(clips, rows),
                )
            last = job.checkpoints.latest()
        assert last is not None
        facts = last.facts
        for key, (label, reason) in sorted(facts["rejected"].items()):
            job.reject(bytes.fromhex(key), label, reason)
        measured = {name: facts[name] for name in ("psnr", "ssim", "perplexity", "usage")}
        given = measured | {"lpips": facts["lpips"]}
        job.summary({name: value for name, value in given.items() if value is not None})
        job.summary({name: float(facts[name]) for name in ("clips", "heldout_clips")})
        yield {
            "step": last.step,
            "manifest": last.manifest,
            "manifest_sha256": last.manifest_sha256,
            "files_sha256": last.files_sha256,
            "kind": self.shape.kind,
            "codebook_size": facts["codebook_size"],
            **measured,
            "parents": [],
            "label": f"tokenizer {self.shape.kind} step {last.step}",
        }

    def _take(self, job: Job) -> None:
        """A published tokenizer as a checkpoint of ours, measured."""
        from models.tokenizers.interface import build
        from stages.tokenizer.loop import facts_of, quality, writing
        from stages.tokenizer.samples import Samples

        tokenizer = build(self.shape).eval()
        samples = Samples(job.reader("clips"), self, tokenizer.stride)
        measured, picture = quality(self, tokenizer, samples)
        with tempfile.TemporaryDirectory() as folder:
            writing(tokenizer, None, {})(Path(folder))
            job.checkpoints.save(0, Path(folder), facts_of(self, tokenizer, samples, measured))
        if picture:
            job.picture("reconstructions", picture)


def _some_to_train_on(clips: Any) -> bool:
    return any(not held for batch in clips.scan(["held_out"]) for held in batch.column(0).to_pylist())
