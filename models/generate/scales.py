"""Drawing a picture a scale at a time: all codes of a grid in one pass (VAR, arXiv 2404.02905; NextFlow, 2601.02204).

Legend: B prompts, L codes of all scales, n places of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling
from models.generate.context import Context
from models.layout import Document
from models.places import blended, scale_places
from models.tokenizers.scales import Sides


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
    drawn, at = list[Tensor](), 0
    for frame in range(begun, frames):
        if frame:
            context.show_all(model.form.vocabulary.eof)
        for scale, (rows, columns) in enumerate(scales):
            hidden = _hidden(context, scales, scale, drawn[-1]) if scale else context.last_RD[:, None]
            after = at + rows * columns
            if known is not None and after <= known.shape[1]:
                drawn.append(known[:, at:after].to(context.device))
            else:
                drawn.append(context.codes(hidden))
            at = after
            yield torch.cat(drawn, 1)


def _hidden(context: Context, scales: Sequence[Sides], scale: int, coarser_Bn: Tensor) -> Tensor:
    """(R, n, D) after the places of a scale, which show the codes of the coarser one."""
    model, device = context.model, context.device
    index, share = (torch.from_numpy(x).to(device) for x in blended(scales[scale - 1], scales[scale]))
    blend = (coarser_Bn + model.form.vocabulary.visual_offset)[:, index]
    which = torch.tensor([scale, len(scales)], device=device).expand(len(index), 2)
    if model.parts.positions == "scales":
        places = scale_places(scales[scale], scale, model.parts.span)
        positions = torch.from_numpy(places).to(device)[None]
    else:
        positions = context.turn_R1 + torch.arange(len(index), device=device)
        context.turn_R1 = context.turn_R1 + len(index)
    x_BnD = model.embed_scales(blend, share.to(model.trunk.head.weight.dtype), which)
    return context.block(context.doubled(x_BnD), positions, keeps=True)
