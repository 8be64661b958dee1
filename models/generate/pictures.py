"""Pictures and films after words, as pixels: the one entry for whoever has a model and its two tokenizers.

Legend: N prompts, T frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from models import raster
from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling, last
from models.generate.codes import code_rows
from models.generate.latents import latent_steps
from models.generate.scales import scale_steps
from models.layout import Document, Part, Picture, finest, opened
from models.raster import Grid, TextTokenizer
from models.tokenizers.interface import Encoded, VisionTokenizer, to_bytes

Grids = tuple[Grid, ...]
"""Of one picture as its tokenizer has them: `VisionTokenizer.grids`."""
_NOT_YET = 127
"""Grey of pixels that are not drawn."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What pictures are drawn, beside their prompts."""

    grids: Grids
    negative: str = ""
    """What guidance steers away from; nothing: from no words at all."""
    fps: float | None = None
    duration_s: float | None = None
    """What the head of a film says, where its layout states the size."""


def pictures(
    model: AnyToAny,
    tokenizer: VisionTokenizer,
    text: TextTokenizer,
    prompts: Sequence[str],
    how: Sampling,
    seeds: Sequence[int],
    asked: Asked,
) -> NDArray[np.uint8]:
    """(N, T, H, W, 3) of RGB, each drawn after its prompt from its own seed: whatever is drawn beside it."""
    parts = [[text.encode(prompt)] for prompt in prompts]
    drawn = last(drawings(model, text, parts, how, Chance(seeds), asked))
    return painted(tokenizer, drawn, asked.grids)


def drawings(
    model: AnyToAny,
    text: TextTokenizer,
    parts: Sequence[Sequence[Part]],
    how: Sampling,
    chance: Chance,
    asked: Asked,
    begun: Sequence[Picture] | None = None,
) -> Iterator[Tensor]:
    """What there is of a picture after each of the prompts, until it is whole: codes (N, n) in the order
    of their grids, or latents (N, n, C). After each row of codes, each scale, each noise step.

    `begun`: the first frames of each film, which are among what comes out."""
    form, grids = model.form, asked.grids
    size = raster.size_text(finest(grids), asked.fps, asked.duration_s)
    plain = [_plain(row, text, asked.negative) for row in parts]
    firsts = begun or [None] * len(parts)
    prompts, others = (
        [opened(row, size, form, text, first) for row, first in zip(rows, firsts, strict=True)]
        for rows in (parts, plain)
    )
    others = others if how.guidance != 1.0 else None
    yield from _steps(model, prompts, others, how, chance, grids, begun)


def _steps(
    model: AnyToAny,
    prompts: Sequence[Document],
    plain: Sequence[Document] | None,
    how: Sampling,
    chance: Chance,
    grids: Grids,
    begun: Sequence[Picture] | None,
) -> Iterator[Tensor]:
    vision, grid = model.form.layout.vision, finest(grids)
    if vision == "latents":
        held = None if begun is None else torch.from_numpy(np.stack([_vectors(one) for one in begun])).float()
        yield from latent_steps(model, prompts, grid, how, chance, plain, held)
        return
    frames = 0 if begun is None else finest(begun[0].grids)[0]
    first = torch.from_numpy(np.stack([_codes(one) for one in begun])) if begun else None
    if vision == "scales":
        scales = [one[1:] for one in grids[: len(grids) // grid[0]]]
        steps = scale_steps(model, prompts, scales, how, chance, plain, grid[0], frames)
    else:
        steps = code_rows(model, prompts, grid, how, chance, plain, frames)
    for drawn in steps:
        yield drawn if first is None else torch.cat([first.to(drawn.device), drawn], 1)


def painted(tokenizer: VisionTokenizer, drawn: Tensor, grids: Grids) -> NDArray[np.uint8]:
    """(N, T, H, W, 3) of codes (N, n), perhaps not all of them, or of latents (N, n, C)."""
    device = next(tokenizer.parameters(), drawn).device
    drawn = drawn.to(device)
    if drawn.is_floating_point():
        latents = drawn.unflatten(1, finest(grids)).float()
        return _pixels(tokenizer.decode(Encoded(grids=grids, latents=latents)))
    count = sum(int(np.prod(grid)) for grid in grids)
    if drawn.shape[1] == count:
        return _pixels(tokenizer.decode(Encoded(grids=grids, ids=drawn)))
    return _partly(tokenizer, drawn, grids, count)


def picture_of(drawn: Tensor, asked: Asked) -> Picture:
    """What was drawn, codes (n) or latents (n, C), as a part of a document."""
    pace = asked.fps, asked.duration_s
    if drawn.is_floating_point():
        return Picture(grids=asked.grids, vectors=drawn.half().numpy(), fps=pace[0], duration_s=pace[1])
    return Picture(grids=asked.grids, ids=drawn.numpy(), fps=pace[0], duration_s=pace[1])


def _partly(tokenizer: VisionTokenizer, drawn: Tensor, grids: Grids, count: int) -> NDArray[np.uint8]:
    """Of rows, what is not drawn is grey; of scales, the finest whole one of the last frame, enlarged."""
    if len(grids) == 1:
        rows, columns = grids[0][1:]
        filled = torch.nn.functional.pad(drawn, (0, count - drawn.shape[1]))
        shown = _pixels(tokenizer.decode(Encoded(grids=grids, ids=filled)))
        whole, rest = divmod(drawn.shape[1], rows * columns)
        frames, stride = shown.shape[1] // grids[0][0], shown.shape[2] // rows
        shown[:, whole * frames :, rest // columns * stride :] = _NOT_YET
        shown[:, (whole + 1) * frames :] = _NOT_YET
        return shown
    of_frame = grids[: len(grids) // finest(grids)[0]]
    whole, rest = divmod(drawn.shape[1], sum(h * w for _, h, w in of_frame))
    there = int(np.searchsorted(np.cumsum([h * w for _, h, w in of_frame]), rest, "right"))
    frames: list[Tensor] = []
    if whole:
        frames.append(tokenizer.decode(Encoded(grids=of_frame * whole, ids=drawn[:, : drawn.shape[1] - rest])))
    if rest:
        small = tokenizer.decode(Encoded(grids=of_frame[:there], ids=drawn[:, drawn.shape[1] - rest :]))
        size = [side * tokenizer.stride[1] for side in of_frame[-1][1:]]
        frames.append(interpolate(small.flatten(0, 1), size, mode="bilinear").unflatten(0, small.shape[:2]))
    return _pixels(torch.cat(frames, 1))


def _plain(parts: Sequence[Part], text: TextTokenizer, negative: str) -> list[Part]:
    """The negative words in place of all words; pictures that are shown stay."""
    return [text.encode(negative), *(part for part in parts if isinstance(part, Picture))]


def _pixels(frames_NT3HW: Tensor) -> NDArray[np.uint8]:
    return to_bytes(frames_NT3HW.cpu()).numpy()


def _codes(picture: Picture) -> NDArray[np.int64]:
    assert picture.ids is not None
    return picture.ids


def _vectors(picture: Picture) -> NDArray[np.float16]:
    assert picture.vectors is not None
    return picture.vectors
