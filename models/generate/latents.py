"""Drawing latents out of noise, with the whole picture in one pass a step (Transfusion, arXiv 2408.11039).

Legend: B prompts, n places of a picture, C numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling
from models.generate.context import Context
from models.layout import Document
from models.raster import Grid

_FARTHEST = 4.0
"""Deviations beyond which no clean latent is believed: at the first steps its guess is divided by almost 0."""


@torch.no_grad()
def latent_steps(
    model: AnyToAny,
    prompts: Sequence[Document],
    grid: Grid,
    how: Sampling,
    chance: Chance,
    plain: Sequence[Document] | None = None,
    begun_BnC: Tensor | None = None,
) -> Iterator[Tensor]:
    """(B, n, C) latents as the tokenizer has them, by DDIM (arXiv 2010.02502) over `how.steps` of the noise steps: what
    the model takes for the clean ones after each step.

    `begun_BnC`: latents of the first frames of a film, which are held: at every step they stand there with that step's
    noise (as RePaint does, arXiv 2201.09865, without its going back and forth)."""
    form, context = model.form, Context(model, prompts, how, chance, plain)
    count, dtype = int(np.prod(grid)), model.trunk.head.weight.dtype
    x_BnC = chance.normal(count, form.latent_size).to(context.device, dtype)
    held_BmC = x_BnC[:, :0] if begun_BnC is None else (begun_BnC.to(x_BnC) - form.latent_mean) / form.latent_std
    noise_BmC = x_BnC[:, : held_BmC.shape[1]].clone()
    kept = model.kept.to(context.device, dtype)
    steps = _steps(how.steps, model.parts.noise_steps)
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        x_BnC = _held(x_BnC, held_BmC, noise_BmC, kept[step])
        noise_BnC = _noise(context, x_BnC, grid, step)
        clean_BnC = (x_BnC - (1 - kept[step]).sqrt() * noise_BnC) / kept[step].sqrt()
        clean_BnC = clean_BnC.clamp(-_FARTHEST, _FARTHEST)
        noise_BnC = (x_BnC - kept[step].sqrt() * clean_BnC) / (1 - kept[step]).sqrt()
        if after is not None:
            x_BnC = kept[after].sqrt() * clean_BnC + (1 - kept[after]).sqrt() * noise_BnC
        clean_BnC = torch.cat([held_BmC, clean_BnC[:, held_BmC.shape[1] :]], 1)
        yield clean_BnC * form.latent_std + form.latent_mean


def _steps(count: int, of: int) -> list[int]:
    """Evenly spaced noise steps, the highest first, down to 0."""
    count = min(count, of)
    stride = of // count
    return list(range(0, stride * count, stride))[::-1]


def _held(x_BnC: Tensor, held_BmC: Tensor, noise_BmC: Tensor, kept: Tensor) -> Tensor:
    """The frames that are given, with as much noise as this step has."""
    given_BmC = kept.sqrt() * held_BmC + (1 - kept).sqrt() * noise_BmC
    return torch.cat([given_BmC, x_BnC[:, held_BmC.shape[1] :]], 1)


def _noise(context: Context, x_BnC: Tensor, grid: Grid, step: int) -> Tensor:
    """(B, n, C) that the model sees in them."""
    model, count = context.model, x_BnC.shape[1]
    shown_RnC = context.doubled(x_BnC)
    grids = [grid] * len(shown_RnC)
    time_PD = model.time(torch.full((len(shown_RnC) * count,), step, device=context.device))
    entered_PD, skips = model.patches.enter(shown_RnC.flatten(0, 1), time_PD, grids)
    positions = context.turn_R1 + torch.arange(count, device=context.device)
    hidden_RnD = context.block(entered_PD.unflatten(0, (-1, count)), positions, keeps=False)
    left_PC = model.patches.leave(hidden_RnD.flatten(0, 1), time_PD, grids, skips)
    return context.steered(left_PC.unflatten(0, (-1, count)))
