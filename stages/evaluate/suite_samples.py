"""The drawing suite: pictures drawn from held-out captions. Not a stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.layout import finest, prompt
from stages import frames
from stages.base import Job, Row
from stages.evaluate.subject import Pair, Subject

if TYPE_CHECKING:
    import torch

    from stages.evaluate.evaluate import Evals

_SAMPLE_COLUMNS = 8


def drawn_pictures(stage: Evals, job: Job, subject: Subject, pairs: Sequence[Pair]) -> Iterator[Row]:
    """A row for each picture, and a sheet of them above what their captions described."""
    from models.quality import psnr

    stills = [pair for pair in pairs if finest(pair.picture.grids)[0] == 1]
    if not stills:
        return
    grids = stills[0].picture.grids
    stills = [pair for pair in stills if pair.picture.grids == grids][: stage.num_samples]
    codes, drawn, wanted = _drawn(stage, subject, stills)
    near, chance = psnr(drawn, wanted), psnr(drawn, np.roll(wanted, 1, axis=0))
    job.summary({"samples/psnr": float(near.mean()), "samples/psnr_of_another": float(chance.mean())})
    job.picture("samples", frames.to_png(_rows_of_pairs(drawn, wanted), scale=2))
    for pair, ids, score in zip(stills, codes, near, strict=True):
        yield subject.row("samples", pair.key, pair.text, json.dumps(ids), "psnr to its clip", score)


def _drawn(
    stage: Evals, subject: Subject, stills: Sequence[Pair]
) -> tuple[list[list[int]], NDArray[np.uint8], NDArray[np.uint8]]:
    """What is drawn from each caption: codes (of latents none), as pixels, and its clip's own as pixels."""
    import torch

    from models.generate import Sampling, draw_codes, draw_latents, draw_scales
    from models.tokenizers.interface import Encoded, to_bytes

    how = Sampling(
        temperature=stage.temperature,
        top_k=stage.top_k,
        guidance=stage.guidance,
        steps=stage.noise_steps,
        seed=stage.seed,
    )
    grids, form = stills[0].picture.grids, subject.form
    grid = finest(grids)
    prompts = [prompt(subject.text.encode(pair.text), grid, form, subject.text) for pair in stills]
    plain = [prompt([], grid, form, subject.text)] * len(stills)

    def painted(**codes: torch.Tensor) -> NDArray[np.uint8]:
        return to_bytes(subject.tokenizer.decode(Encoded(grids=grids, **codes))[:, 0]).numpy()

    if form.layout.vision == "latents":
        shape = (len(stills), *grid, form.latent_size)
        vectors = draw_latents(subject.model, prompts, grid, how, plain).view(shape)
        own = torch.from_numpy(
            np.stack([pair.picture.vectors for pair in stills if pair.picture.vectors is not None])
        ).view(shape)
        return [[] for _ in stills], painted(latents=vectors), painted(latents=own.float())
    if form.layout.vision == "scales":
        ids = draw_scales(subject.model, prompts, [grid[1:] for grid in grids], how, plain=plain)
    else:
        ids = draw_codes(subject.model, prompts, grid, how, plain)
    own = torch.from_numpy(np.stack([pair.picture.ids for pair in stills if pair.picture.ids is not None]))
    return ids.tolist(), painted(ids=ids), painted(ids=own)


def _rows_of_pairs(drawn: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of drawn images, each above the row of what their captions described."""
    sheets = []
    for start in range(0, len(drawn), _SAMPLE_COLUMNS):
        for part in (drawn, wanted):
            sheets.append(frames.mosaic(part[start : start + _SAMPLE_COLUMNS], _SAMPLE_COLUMNS))
    return np.concatenate(sheets)
