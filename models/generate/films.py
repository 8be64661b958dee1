"""Films that go on: frames after those that are given, for as long as is asked, in a window that slides.

The model knows films of as many frames as it was trained on, and its context holds no more. So each window is a film
of that length, whose first frames are the last ones that there are; its head says the size of the window, as in
training. Frames are those of the tokenizer's grid, which may each stand for several of pixels.

Legend: B films, F frames, L codes of a frame (of latents L places of C numbers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling, last
from models.generate.pictures import Asked, Grids, drawings, picture_of
from models.layout import Part, finest
from models.raster import TextTokenizer


def film_grids(grids: Grids, frames: int) -> Grids:
    """The grids of a film of so many frames, after those of one of any length."""
    if len(grids) == 1:
        return ((frames, *grids[0][1:]),)
    return grids[: len(grids) // finest(grids)[0]] * frames


def film_frames(
    model: AnyToAny,
    text: TextTokenizer,
    parts: Sequence[Sequence[Part]],
    how: Sampling,
    chance: Chance,
    window: Asked,
    frames: int,
    given_BFL: Tensor | None = None,
    keep: int | None = None,
) -> Iterator[Tensor]:
    """(B, F, L) codes, or (B, F, L, C) latents, of all frames so far, up to `frames`, after every window.

    `given_BFL`: the first frames; none: they are drawn too. `window`: the films that the model knows. `keep`: frames of
    a window that stand there already, at most; the fewer, the fewer passes and the less memory of what was before."""
    size = finest(window.grids)[0]
    keep = size - 1 if keep is None else keep
    if not 0 < keep < size and frames > size:
        raise ValueError(f"a window of {size} frames cannot keep {keep} of them: give 1 to {size - 1}")
    have, count = given_BFL, 0 if given_BFL is None else given_BFL.shape[1]
    while count < frames:
        begun, first = None, 0
        if have is not None:
            first = min(count, keep)
            asked = replace(window, grids=film_grids(window.grids, first))
            begun = [
                picture_of(one.flatten(0, 1) if one.ndim == 3 else one.flatten(), asked)
                for one in have[:, -first:].cpu()
            ]
        drawn = last(drawings(model, text, parts, how, chance, window, begun))
        film = drawn.unflatten(1, (size, -1)).cpu()
        have = film if have is None else torch.cat([have.cpu(), film[:, first:]], 1)[:, :frames]
        count = have.shape[1]
        yield have
