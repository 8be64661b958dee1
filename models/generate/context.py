"""What has been said so far, in a cache, and what comes after it.

Legend: B prompts, R rows: the prompts, and behind them, with guidance, as many negative ones; n places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from models.any_to_any import AnyToAny
from models.attention import CachedAttention, may_see
from models.batch import Batch, batch_of
from models.generate.choosing import Chance, Sampling, chosen
from models.layout import Document, Format
from models.places import Places, places, tokens_of
from models.recipe import Parts


class Context:
    """Prompts in the cache, the negative ones behind the others, and what is drawn after them, all at one pace."""

    def __init__(
        self,
        model: AnyToAny,
        prompts: Sequence[Document],
        how: Sampling,
        chance: Chance,
        plain: Sequence[Document] | None = None,
    ) -> None:
        self.model, self.how, self.chance, self.count = model, how, chance, len(prompts)
        self.guided = how.guidance != 1.0 and plain is not None
        self.device = model.trunk.head.weight.device
        rows = [_shown(model, one) for one in (*prompts, *(plain or () if self.guided else ()))]
        longest = max(len(x_TD) for x_TD, _, _ in rows)
        left = [longest - len(x_TD) for x_TD, _, _ in rows]
        x_RTD = torch.stack([pad(x_TD, (0, 0, gap, 0)) for (x_TD, _, _), gap in zip(rows, left, strict=True)])
        real_RT = torch.arange(longest, device=self.device)[None] >= torch.tensor(left, device=self.device)[:, None]
        sees_RTT = None
        if any(batch.groups_T is not None for _, batch, _ in rows):
            sees = [_sees(batch) for _, batch, _ in rows]
            sees_RTT = torch.stack([pad(one, (gap, 0, gap, 0)) for one, gap in zip(sees, left, strict=True)])
        positions = [batch.positions_TA for _, batch, _ in rows]
        ends = [(0, 0) if one.ndim == 2 else () for one in positions]
        stacked = [pad(one, (*end, gap, 0)) for one, end, gap in zip(positions, ends, left, strict=True)]
        self.turn_R1 = torch.tensor([turn for _, _, turn in rows], device=self.device)[:, None]
        """Place in the line of what comes next."""
        self.attend = CachedAttention(real_RT, sees_RTT)
        self.last_RD = self._run(x_RTD, torch.stack(stacked))[:, -1]
        """What predicts the next token."""

    def show(self, token_B: Tensor) -> None:
        """A token that was drawn, or a mark, in every row."""
        x_R1D = self.model.embed(self.doubled(token_B))[:, None]
        self.attend.admit(1)
        self.last_RD = self._run(x_R1D, self.turn_R1)[:, -1]
        self.turn_R1 = self.turn_R1 + 1

    def show_all(self, token: int) -> None:
        """The same mark in every row."""
        self.show(torch.full((self.count,), token, device=self.device))

    def block(self, x_RnD: Tensor, positions: Tensor, *, keeps: bool) -> Tensor:
        """(R, n, D) of places that see each other; `keeps`: what follows sees them. Positions (1 or R, n [, A])."""
        self.attend.admit(x_RnD.shape[1], both_ways=True, keeps=keeps)
        return self._run(x_RnD, positions.expand(len(x_RnD), *positions.shape[1:]))

    def doubled(self, x: Tensor) -> Tensor:
        """(R, ...) of (B, ...)."""
        return torch.cat([x, x]) if self.guided else x

    def codes(self, hidden: Tensor) -> Tensor:
        """(B [, n]) codes drawn after hidden states (R [, n], D)."""
        logits = self.steered(self.model.code_logits(hidden).float())
        return chosen(
            logits, self.how, self.chance.uniform(logits[0].numel() // logits.shape[-1]).view(logits.shape[:-1])
        )

    def steered(self, said: Tensor) -> Tensor:
        """(B, ...) of what was said after the prompts and after the negative ones."""
        if not self.guided:
            return said
        told, plain = said.split(self.count)
        return plain + self.how.guidance * (told - plain)

    def _run(self, x_RnD: Tensor, positions: Tensor) -> Tensor:
        if self.model.parts.positions == "scales" and positions.ndim == 2:
            positions = positions[..., None].expand(*positions.shape, 3)
        return self.model.trunk(x_RnD, positions, self.attend)


def _shown(model: AnyToAny, one: Document) -> tuple[Tensor, Batch, int]:
    """(T, D) of what stands at a document's places, the batch it came from, and the turn of what comes next."""
    made = places(tokens_of([one]), span=model.parts.span, interleave=model.form.layout.interleave)
    batch = read_batch(made, one, model.form, model.parts, model.trunk.head.weight)
    turn = len(made.tokens) - (len(made.scale_at) if model.parts.positions == "scales" else 0)
    return model.shown(batch), batch, turn


def read_batch(made: Places, one: Document, form: Format, parts: Parts, like: Tensor) -> Batch:
    """A document that is read: its latents almost clean, at the first noise step and without noise.

    Numbers are of the device and kind of `like`."""
    latents = np.concatenate(one.latents) if one.latents else None
    features = np.concatenate(one.features) if one.features else None
    noise = steps = None
    if latents is not None:
        noise, steps = np.zeros(latents.shape, np.float32), np.zeros(len(latents), np.int64)
    batch = batch_of(
        made, form, parts, like.device, latents_PC=latents, features_QF=features, noise_PC=noise, step_P=steps
    )
    for name in ("clean_PC", "noise_PC", "features_QF"):
        value = getattr(batch, name)
        setattr(batch, name, None if value is None else value.to(like.dtype))
    return batch


def _sees(batch: Batch) -> Tensor:
    return may_see(torch.zeros_like(batch.tokens_T), group_T=batch.groups_T)
