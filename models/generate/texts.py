"""Text after texts and pictures, and documents that go on by themselves, with pictures where the model begins one.

The grammar of what is drawn, from the layout alone:

    text      ids of text, EOS, and boi where pictures are allowed
    size      where the layout states it: after boi the words of one of the sizes that are allowed, token by token
    picture   the layout's template, a scale at a time, or latents (codes.py, scales.py, latents.py); then text again

Rows of a batch stand in different places of it. They go together as far as all are in their text; those that have begun
pictures of one size then draw them together, and every document is read anew, as it is written by `layout.document`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import raster
from models.any_to_any import AnyToAny
from models.generate.choosing import Chance, Sampling, chosen, last
from models.generate.context import Context
from models.generate.pictures import Asked, drawings, picture_of
from models.layout import Part, Picture, document, finest
from models.raster import TextTokenizer
from models.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Going:
    """How far a document goes on, and with which pictures."""

    max_tokens: int = 256
    """Most tokens of text, of each document."""
    pictures: Sequence[Asked] = ()
    """Those that the model may begin; where the layout states no size, one; none: text alone."""
    max_pictures: int = 1
    how: Sampling = field(default_factory=Sampling)
    """Of its text,"""
    how_pictures: Sampling = field(default_factory=Sampling)
    """and of its pictures."""


@dataclass
class _Row:
    """One document that goes on."""

    parts: list[Part]
    words: list[int] = field(default_factory=list)
    """Text since the last part,"""
    head: list[int] = field(default_factory=list)
    """boi and what is said of a size."""
    begun: Asked | None = None
    tokens: int = 0
    pictures: int = 0
    ended: bool = False


def texts(
    model: AnyToAny,
    text: TextTokenizer,
    parts: Sequence[Sequence[Part]],
    how: Sampling,
    seeds: Sequence[int],
    max_tokens: int = 256,
) -> list[str]:
    """The text that follows each document of texts (ids) and pictures, to its end or to `max_tokens`."""
    going = Going(max_tokens=max_tokens, how=how)
    added = continued(model, text, parts, going, seeds)
    return [text.decode([token for part in row if not isinstance(part, Picture) for token in part]) for row in added]


def continued(
    model: AnyToAny, text: TextTokenizer, parts: Sequence[Sequence[Part]], going: Going, seeds: Sequence[int]
) -> list[list[Part]]:
    """The parts that follow each document: ids of texts, and pictures where the model began one."""
    chance = Chance(seeds)
    rows = [_Row(parts=list(one)) for one in parts]
    while open_rows := [number for number, row in enumerate(rows) if not row.ended]:
        _say(model, text, [rows[number] for number in open_rows], chance.of(open_rows), going)
        for asked in going.pictures:
            together = [number for number in open_rows if rows[number].begun is asked]
            if together:
                _draw(model, text, [rows[number] for number in together], chance.of(together), going, asked)
    return [row.parts[len(one) :] for row, one in zip(rows, parts, strict=True)]


@torch.no_grad()
def _say(model: AnyToAny, text: TextTokenizer, rows: Sequence[_Row], chance: Chance, going: Going) -> None:
    """Text in every row until it ends or begins a picture; a row that waits for the others is shown padding."""
    vocabulary = model.form.vocabulary
    prompts = [document(row.parts, model.form, text, ended=False) for row in rows]
    context = Context(model, prompts, going.how, chance)
    heads = {asked: _head(asked, model, text) for asked in going.pictures}
    for row in rows:
        row.begun, row.head = None, []
        row.ended = row.tokens >= going.max_tokens
    while go_on := [place for place, row in enumerate(rows) if not (row.ended or row.begun)]:
        logits_BV = model.logits(context.last_RD[go_on]).float()
        may_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        for may_V, place in zip(may_BV, go_on, strict=True):
            _allow(may_V, rows[place], vocabulary, heads, going)
        uniform_B = chance.of(go_on).uniform(1)[:, 0]
        drawn = chosen(logits_BV.masked_fill(~may_BV, float("-inf")), going.how, uniform_B).tolist()
        shown = torch.full((len(rows),), vocabulary.pad)
        for place, token in zip(go_on, drawn, strict=True):
            _take(rows[place], token, vocabulary, heads, going)
            shown[place] = token
        context.show(shown.to(context.device))


def _allow(may_V: Tensor, row: _Row, vocabulary: Vocabulary, heads: Mapping[Asked, list[int]], going: Going) -> None:
    """What may come next in a row."""
    if row.head:
        size = len(row.head)
        may_V[[head[size] for head in heads.values() if head[:size] == row.head]] = True
        return
    may_V[: vocabulary.text_size] = True
    may_V[vocabulary.eos] = True
    may_V[vocabulary.boi] = bool(heads) and row.pictures < going.max_pictures


def _take(row: _Row, token: int, vocabulary: Vocabulary, heads: Mapping[Asked, list[int]], going: Going) -> None:
    """The row with the token that was drawn."""
    if row.head or token == vocabulary.boi:
        row.head.append(token)
        row.begun = next((asked for asked, head in heads.items() if head == row.head), None)
    elif token != vocabulary.eos:
        row.words.append(token)
    row.tokens += len(row.head) <= 1
    row.ended = token == vocabulary.eos or (row.tokens >= going.max_tokens and not row.head)
    if row.words and (row.ended or row.begun):
        row.parts.append(row.words)
        row.words = []


def _head(asked: Asked, model: AnyToAny, text: TextTokenizer) -> list[int]:
    size = raster.size_text(finest(asked.grids), asked.fps, asked.duration_s)
    return raster.head(size, model.form.vocabulary, text, model.form.layout.marks)


def _draw(
    model: AnyToAny, text: TextTokenizer, rows: Sequence[_Row], chance: Chance, going: Going, asked: Asked
) -> None:
    """The pictures that these rows have begun, after all that they have said."""
    drawn = last(drawings(model, text, [row.parts for row in rows], going.how_pictures, chance, asked)).cpu()
    for row, one in zip(rows, drawn, strict=True):
        row.parts.append(picture_of(one, asked))
        row.pictures += 1
