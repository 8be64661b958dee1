"""Score a checkpoint on what it was never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import Edge, Job, JobStage, Row, since
from stages.evaluate.losses import losses
from stages.evaluate.subject import PICTURE_COLUMNS, Subject, pairs_of
from stages.evaluate.suite_samples import drawn_pictures
from stages.evaluate.suite_tokenizer import redrawn


@dataclass(frozen=True, kw_only=True)
class Evals(JobStage):
    """Three suites over held-out rows, one row per scored sample.

    tokenizer   PSNR (dB) and SSIM of clips redrawn from their codes, mean over the frames of a clip; of films 8
                frames at 12 fps from the middle (Emu3, arXiv 2409.18869, table 2), short side scaled, centre cut;
                with Inception's weights also the FID of all redrawn frames to the true ones (rFID)
    heldout     nats per token: text (texts, and captions unaided where the recipe learns them), caption (captions after
                their picture), vision (codes after their caption), beside predictors fitted on the training packs: a
                unigram of each modality, a bigram of text. Of latents the mean squared error
                of their noise, beside a line fitted to each number by itself (stages/evaluate/baselines.py)
    samples     pictures drawn from held-out captions: PSNR to the clip's own codes (latents) redrawn, and, for chance,
                to those of the next caption's clip

    A suite without held-out rows leaves its metrics out.
    """

    writes: ClassVar[str] = "evals"
    revision: ClassVar[int] = 3
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "fps", "held_out")),
        Edge("captions", columns=("text", "held_out")),
        Edge("indices", columns=(*PICTURE_COLUMNS, "held_out")),
        Edge("texts", columns=("text", "held_out")),
        Edge("packs", columns=("tokens", "segments")),
        Edge("model", role="side"),
        Edge("tokenizer", role="side"),
        Edge("text_tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("suite", pa.string()),
            ("step", pa.int64()),
            ("prompt", pa.string()),
            ("output", pa.string()),
            ("judge", pa.string()),
            ("score", pa.float64()),
        ]
    )

    tokenizer_size: int
    """Pixels of the side at which the tokenizer is measured."""
    tokenizer_frames: int = 8
    """Frames of a film."""
    tokenizer_fps: float = 12.0
    """Frames a second."""
    max_clips: int = 200
    """Most clips redrawn."""
    max_documents: int = 300
    """Most held-out pairs, and most held-out texts, whose loss is measured."""
    num_samples: int = 16
    """Images drawn from captions."""
    temperature: float = 0.8
    """Of sampling; 0 takes the most likely code."""
    top_k: int = 64
    """Codes that compete at each place; 0: all."""
    guidance: float = 1.0
    """Of sampling, away from what is drawn without a caption; 1: none."""
    noise_steps: int = 50
    """Of drawing latents out of noise."""
    seed: int = 0
    """Of sampling."""
    inception_weights: str | None = since(None)
    """Path of FID's Inception v3 as safetensors (models/inception.py); none: no rFID."""

    def run(self, job: Job) -> Iterator[Row]:
        """Each suite in turn; rows in order of key."""
        import torch

        from models.any_to_any import load_model
        from models.tokenizers.interface import load_tokenizer
        from models.tokenizers.text import load_text_tokenizer

        torch.set_num_threads(1)
        model, step = load_model(job.checkpoint("model"))
        vocabulary = model.form.vocabulary
        text = load_text_tokenizer(job.checkpoint("text_tokenizer"))
        tokenizer = load_tokenizer(job.checkpoint("tokenizer"))
        seen = vocabulary.vision_digest or tokenizer.digest(), vocabulary.text_digest
        if seen != (tokenizer.digest(), text.digest):
            raise UserError(
                "the model was trained on tokens of another tokenizer than the one given;"
                " run plait run --from indices to bring both together"
            )
        subject = Subject(model, text, tokenizer, step)
        yield from redrawn(self, job, subject)
        pairs = pairs_of(job, features=model.form.layout.features)
        yield from losses(self, job, subject, pairs)
        yield from drawn_pictures(self, job, subject, pairs)
