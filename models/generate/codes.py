"""Drawing codes one after the other in raster order, under the layout's constraint (models/raster.py).

Where only a mark may stand the mark is put, elsewhere only visual codes compete, so that whatever the logits say the
result parses. Legend: B prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling
from models.generate.context import Context
from models.layout import Document
from models.raster import CODE, Grid, template


@torch.no_grad()
def code_rows(
    model: AnyToAny,
    prompts: Sequence[Document],
    grid: Grid,
    how: Sampling,
    chance: Chance,
    plain: Sequence[Document] | None = None,
    begun: int = 0,
) -> Iterator[Tensor]:
    """(B, n) codes in raster order after prompts that end with the block's head and `begun` frames: those drawn so far,
    after every row of codes; the last time all t*h*w but those of the frames that were there."""
    frames, _, columns = grid
    form, context = model.form, Context(model, prompts, how, chance, plain)
    places = template(grid, form.vocabulary, form.layout.marks).tolist()
    first = len(places) * begun // frames
    last = len(places) - 1 - places[::-1].index(CODE)
    drawn: list[Tensor] = []
    for number, mark in enumerate(places[first : last + 1], first):
        if mark == CODE:
            drawn.append(context.codes(context.last_RD))
            if number < last:
                context.show(drawn[-1] + form.vocabulary.visual_offset)
            if len(drawn) % columns == 0:
                yield torch.stack(drawn, dim=1)
        else:
            context.show_all(mark)
