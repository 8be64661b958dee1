"""Drawing pictures after a prompt: code by code, scale by scale, or out of noise.

Legend: B batch, V vocabulary, D width, n places, C numbers of a latent.

Codes are drawn under the layout's constraint (models/raster.allowed): where only a mark may stand the mark is put,
elsewhere only visual codes compete, so that whatever the logits say the result parses. With `guidance` above 1 each
step is taken away from what the model says without the caption: u + guidance * (c - u) of logits, or of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.any_to_any import AnyToAny
from models.attention import CachedAttention
from models.diffusion import noised
from models.places import blended, scale_places
from models.raster import CODE, Grid, template
from models.tokenizers.scales import Sides

_FARTHEST = 4.0
"""Deviations beyond which no clean latent is believed: at the first steps its guess is divided by almost 0."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw."""

    temperature: float = 1.0
    """0 takes the most likely code."""
    top_k: int = 0
    """Codes that compete; 0: all."""
    guidance: float = 1.0
    """1: none. Needs prompts without captions."""
    steps: int = 50
    """Of drawing latents out of noise (Transfusion: 250)."""
    seed: int = 0


def sample(logits_BV: Tensor, temperature: float, top_k: int, generator: torch.Generator | None = None) -> Tensor:
    """(B) drawn ids; temperature 0 takes the most likely one, top_k 0 keeps all."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    if 0 < top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return torch.multinomial(torch.softmax(logits_BV / temperature, -1), 1, generator=generator)[:, 0]


class Drawing:
    """A batch of prompts in the cache, those without captions behind the others, and what is drawn after them."""

    def __init__(
        self, model: AnyToAny, prompts: Sequence[list[int]], plain: Sequence[list[int]] | None, how: Sampling
    ) -> None:
        self.model, self.how, self.count = model, how, len(prompts)
        self.guided = how.guidance != 1.0 and plain is not None
        rows = [*prompts, *plain] if self.guided and plain is not None else list(prompts)
        self.device = model.trunk.head.weight.device
        self.generator = torch.Generator(self.device).manual_seed(how.seed)
        longest = max(map(len, rows))
        tokens_BT = torch.full((len(rows), longest), model.form.vocabulary.pad, device=self.device)
        real_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, prompt in enumerate(rows):
            tokens_BT[row, longest - len(prompt) :] = torch.tensor(prompt, device=self.device)
            real_BT[row, longest - len(prompt) :] = True
        self.attend = CachedAttention(real_BT)
        self.turn_B1 = real_BT.sum(1, keepdim=True)
        """Place in the line of what comes next."""
        self.last_BD = self._run(model.embed(tokens_BT), (real_BT.cumsum(1) - 1).clamp(min=0))[:, -1]

    def show(self, token_B: Tensor) -> None:
        """A token that was drawn, or a mark, for all."""
        x_B1D = self.model.embed(torch.cat([token_B, token_B]) if self.guided else token_B)[:, None]
        self.last_BD = self._run(x_B1D, self.turn_B1)[:, -1]
        self.turn_B1 = self.turn_B1 + 1

    def block(self, x_BnD: Tensor, positions_BnA: Tensor, *, keeps: bool) -> Tensor:
        """(B, n, D) of places that see each other."""
        self.attend.both_ways, self.attend.keeps = True, keeps
        if self.guided and len(x_BnD) == self.count:
            x_BnD = torch.cat([x_BnD, x_BnD])
        hidden = self._run(x_BnD, positions_BnA.expand(len(x_BnD), *positions_BnA.shape[1:]))
        self.attend.both_ways, self.attend.keeps = False, True
        return hidden

    def codes(self, hidden: Tensor) -> Tensor:
        """(B, ...) codes drawn after hidden states (B or 2B, ..., D)."""
        logits = self.steered(self.model.code_logits(hidden).float())
        flat = sample(logits.flatten(0, -2), self.how.temperature, self.how.top_k, self.generator)
        return flat.view(logits.shape[:-1])

    def steered(self, said: Tensor) -> Tensor:
        """(B, ...) of what was said with and without the caption."""
        if not self.guided:
            return said
        told, plain = said.split(self.count)
        return plain + self.how.guidance * (told - plain)

    def _run(self, x_BnD: Tensor, positions: Tensor) -> Tensor:
        if self.model.parts.positions == "scales" and positions.ndim == 2:
            positions = positions[..., None].expand(*positions.shape, 3)
        return self.model.trunk(x_BnD, positions, self.attend)


@torch.no_grad()
def draw_codes(
    model: AnyToAny, prompts: Sequence[list[int]], grid: Grid, how: Sampling, plain: Sequence[list[int]] | None = None
) -> Tensor:
    """(B, t*h*w) codes in raster order after prompts that end with the block's head."""
    form, drawing = model.form, Drawing(model, prompts, plain, how)
    drawn: list[Tensor] = []
    for mark in template(grid, form.vocabulary, form.layout.marks).tolist():
        if mark == CODE:
            drawn.append(drawing.codes(drawing.last_BD))
            drawing.show(drawn[-1] + form.vocabulary.visual_offset)
        else:
            drawing.show(torch.full((len(prompts),), mark, device=drawing.device))
    return torch.stack(drawn, dim=1)


@torch.no_grad()
def draw_scales(
    model: AnyToAny,
    prompts: Sequence[list[int]],
    scales: Sequence[Sides],
    how: Sampling,
    frames: int = 1,
    plain: Sequence[list[int]] | None = None,
) -> Tensor:
    """(B, L) codes of every scale, frame after frame; `scales` are the grids of one frame, the first 1x1."""
    vocabulary, drawing = model.form.vocabulary, Drawing(model, prompts, plain, how)
    drawn: list[Tensor] = []
    for frame in range(frames):
        if frame:
            drawing.show(torch.full((len(prompts),), vocabulary.eof, device=drawing.device))
        drawn.append(drawing.codes(drawing.last_BD)[:, None])
        for scale in range(1, len(scales)):
            index, share = (torch.from_numpy(x).to(drawing.device) for x in blended(scales[scale - 1], scales[scale]))
            blend = (drawn[-1] + vocabulary.visual_offset)[:, index]
            which = torch.tensor([scale, len(scales)], device=drawing.device).expand(len(index), 2)
            if model.parts.positions == "scales":
                positions = torch.from_numpy(scale_places(scales[scale], scale, model.parts.span)).to(drawing.device)[
                    None
                ]
            else:
                positions = drawing.turn_B1 + torch.arange(len(index), device=drawing.device)
                drawing.turn_B1 = drawing.turn_B1 + len(index)
            x = model.embed_scales(blend, share, which)
            drawn.append(drawing.codes(drawing.block(x, positions, keeps=True)))
    return torch.cat(drawn, 1)


@torch.no_grad()
def draw_latents(
    model: AnyToAny, prompts: Sequence[list[int]], grid: Grid, how: Sampling, plain: Sequence[list[int]] | None = None
) -> Tensor:
    """(B, n, C) latents as the tokenizer has them, by DDIM (arXiv 2010.02502) over `how.steps` of the noise steps."""
    drawing, form = Drawing(model, prompts, plain, how), model.form
    count, size = int(np.prod(grid)), form.latent_size
    grids = [grid] * (len(prompts) * (2 if drawing.guided else 1))
    x_BnC = torch.randn(len(prompts), count, size, generator=drawing.generator, device=drawing.device)
    x_BnC, kept = (x.to(model.trunk.head.weight) for x in (x_BnC, model.kept))
    count_steps = min(how.steps, model.parts.noise_steps)
    stride = model.parts.noise_steps // count_steps
    steps = list(range(0, stride * count_steps, stride))[::-1]
    positions = drawing.turn_B1 + torch.arange(count, device=drawing.device)
    for place, step in enumerate(steps):
        shown = (torch.cat([x_BnC, x_BnC]) if drawing.guided else x_BnC).flatten(0, 1)
        time_PD = model.time(torch.full((len(shown),), step, device=drawing.device))
        entered, skips = model.patches.enter(shown, time_PD, grids)
        hidden = drawing.block(entered.unflatten(0, (-1, count)), positions, keeps=False)
        noise = model.patches.leave(hidden.flatten(0, 1), time_PD, grids, skips).unflatten(0, (-1, count))
        noise_BnC = drawing.steered(noise)
        clean = (x_BnC - (1 - kept[step]).sqrt() * noise_BnC) / kept[step].sqrt()
        clean = clean.clamp(-_FARTHEST, _FARTHEST)
        noise_BnC = (x_BnC - kept[step].sqrt() * clean) / (1 - kept[step]).sqrt()
        if place + 1 == len(steps):
            x_BnC = clean
        else:
            after = kept[steps[place + 1]].expand(count)
            x_BnC = torch.stack([noised(c, n, after) for c, n in zip(clean, noise_BnC, strict=True)])
    return x_BnC * form.latent_std + form.latent_mean
