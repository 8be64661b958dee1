"""The tokenizer's suite: held-out clips redrawn from their codes. Not a stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stages import frames
from stages.base import BadRow, Job, Row
from stages.evaluate.subject import Subject, held_out_rows

if TYPE_CHECKING:
    from stages.evaluate.evaluate import Evals


def redrawn(stage: Evals, job: Job, subject: Subject) -> Iterator[Row]:
    """Two rows for each clip: PSNR and SSIM."""
    import torch

    from models.quality import psnr, ssim
    from models.tokenizers.interface import to_bytes, to_pixels
    from stages.evaluate.rfid import Rfid

    view = frames.View(
        size=stage.tokenizer_size, frames=stage.tokenizer_frames, fps=stage.tokenizer_fps, cover="middle"
    )
    clips = held_out_rows(job, "clips", ("media", "source_kind", "num_frames", "fps"), stage.max_clips)
    scores: list[tuple[float, float]] = []
    rfid = Rfid(stage.inception_weights)
    for clip in clips:
        try:
            shown = frames.prepare(
                clip["media"],
                clip["source_kind"],
                clip["num_frames"],
                clip["fps"],
                view,
                subject.tokenizer.stride,
            ).pictures
        except BadRow as bad:
            job.reject(clip["key"], clip["label"], str(bad))
            continue
        encoded = subject.tokenizer.encode(to_pixels(torch.from_numpy(shown)[None]))
        again = to_bytes(subject.tokenizer.decode(encoded)[0]).numpy()[: len(shown)]
        rfid.add(shown, again)
        scores.append((float(psnr(shown, again).mean()), float(ssim(shown, again).mean())))
        for judge, score in zip(("psnr", "ssim"), scores[-1], strict=True):
            yield subject.row("tokenizer", clip["key"], clip["label"], f"{len(shown)} frames", judge, score)
        job.progress(len(scores), len(clips), "clips redrawn")
    if scores:
        means = np.mean(scores, axis=0)
        job.summary({"tokenizer/psnr": float(means[0]), "tokenizer/ssim": float(means[1])} | rfid.summary())
