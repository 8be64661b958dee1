"""The drawing suite: pictures drawn from held-out captions. Not a stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.layout import finest
from stages import frames
from stages.base import Job, Row
from stages.evaluate.subject import Pair, Subject

if TYPE_CHECKING:
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

    from models.generate.choosing import Chance, Sampling, last
    from models.generate.pictures import Asked, drawings, painted

    how = Sampling(temperature=stage.temperature, top_k=stage.top_k, guidance=stage.guidance, steps=stage.noise_steps)
    asked = Asked(grids=stills[0].picture.grids)
    parts = [[subject.text.encode(pair.text)] for pair in stills]
    chance = Chance([stage.seed + place for place in range(len(stills))])
    drawn = last(drawings(subject.model, subject.text, parts, how, chance, asked))
    pictures = [pair.picture for pair in stills]
    if subject.form.layout.vision == "latents":
        own = torch.from_numpy(np.stack([one.vectors for one in pictures if one.vectors is not None])).float()
        codes: list[list[int]] = [[] for _ in stills]
    else:
        own = torch.from_numpy(np.stack([one.ids for one in pictures if one.ids is not None]))
        codes = drawn.tolist()
    of_drawn, of_own = (painted(subject.tokenizer, one, asked.grids)[:, 0] for one in (drawn, own))
    return codes, of_drawn, of_own


def _rows_of_pairs(drawn: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of drawn images, each above the row of what their captions described."""
    sheets = []
    for start in range(0, len(drawn), _SAMPLE_COLUMNS):
        for part in (drawn, wanted):
            sheets.append(frames.mosaic(part[start : start + _SAMPLE_COLUMNS], _SAMPLE_COLUMNS))
    return np.concatenate(sheets)
