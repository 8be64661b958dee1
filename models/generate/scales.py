"""Drawing a picture a scale at a time: all codes of a grid in one pass (VAR, arXiv 2404.02905; NextFlow, 2601.02204),
or in as many as the layout says.

Legend: B prompts, L codes of all scales, n places of one pass, m codes of a frame so far.
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
from models.places import scale_places, shown_codes
from models.tokenizers.scales import Sides, num_places, passes_of


@torch.no_grad()
def scale_steps(
    model: AnyToAny,
    prompts: Sequence[Document],
    scales: Sequence[Sides],
    how: Sampling,
    chance: Chance,
    plain: Sequence[Document] | None = None,
    frames: int = 1,
    begun: int = 0,
    known: Tensor | None = None,
) -> Iterator[Tensor]:
    """(B, n) codes so far, frame after frame from coarse to fine, after every scale; `scales` are the grids of one
    frame, the first 1x1. Prompts end with the block's head and `begun` frames, which are not drawn again. `known`
    (B, k): codes of the first scales of what is drawn, which stand as they are."""
    context = Context(model, prompts, how, chance, plain)
    sides = tuple(scales)
    passes = passes_of(sides, model.form.layout.interleave)
    begins = [num_places(sides[:number]) for number in range(len(sides) + 1)]
    order = torch.from_numpy(np.concatenate([begins[number] + places for number, places in passes]))
    drawn = torch.zeros(len(prompts), 0, dtype=torch.long, device=context.device)
    for frame in range(begun, frames):
        if frame:
            context.show_all(model.form.vocabulary.eof)
        before, said = drawn, drawn[:, :0]
        for turn, (number, places) in enumerate(passes):
            hidden = _hidden(context, sides, turn, said) if turn else context.last_RD[:, None]
            if known is not None and before.shape[1] + begins[number + 1] <= known.shape[1]:
                these = before.shape[1] + begins[number] + torch.from_numpy(places)
                codes = known[:, these].to(context.device)
            else:
                codes = context.codes(hidden)
            said = torch.cat([said, codes], 1)
            if said.shape[1] == begins[number + 1]:
                raster = order[: said.shape[1]].argsort().to(context.device)
                drawn = torch.cat([before, said[:, raster]], 1)
                yield drawn


def _hidden(context: Context, sides: tuple[Sides, ...], turn: int, said_Bm: Tensor) -> Tensor:
    """(R, n, D) after the places of a pass, which show what was said before of their frame."""
    model, device = context.model, context.device
    passes = passes_of(sides, model.form.layout.interleave)
    number, places = passes[turn]
    index, role = shown_codes(sides, model.form.layout.interleave, turn)
    codes = (said_Bm + model.form.vocabulary.visual_offset)[:, torch.from_numpy(index).to(device)]
    which = torch.tensor([turn, len(passes)], device=device).expand(len(index), 2)
    if model.parts.positions == "scales":
        positions = torch.from_numpy(scale_places(sides[number], turn, model.parts.span)[places]).to(device)[None]
    else:
        positions = context.turn_R1 + torch.arange(len(index), device=device)
        context.turn_R1 = context.turn_R1 + len(index)
    x_BnD = model.embed_scales(codes, torch.from_numpy(role).to(device), which)
    return context.block(context.doubled(x_BnD), positions, keeps=True)
