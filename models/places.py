"""What stands at each place of the trunk, what it predicts, what it sees: derived from tokens and typed segments.

Legend: L tokens as they are said, T places in the trunk, S of them places of scales, P of latents, Q of features.

    text, marks, codes   a place shows its token and predicts the next one said
    scale                a place shows the codes of the coarser grid of its frame, blended to this grid, each scale by
                         itself (residual, not accumulated: arXiv 2601.02204), or where grids are said in passes what
                         is known around it (models/around.py), and predicts the code at this very place. The coarsest
                         grid has no places: the token before it predicts its one code
    latents              a place shows a noised vector and predicts its noise
    features             a place shows a vector; the last one predicts the next token

Places of one scale, and of the latents of one picture, see each other; everything else sees what came before it in
its document. numpy only: the loader runs it beside the model.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.around import NEIGHBOURS, around
from models.layout import KINDS, Document
from models.tokenizers.scales import num_places, passes_of

Ints, Floats = NDArray[np.int64], NDArray[np.float32]
NO_GROUP = -1
_TEXT, _MARKS, _CODES, _SCALE, _LATENTS, _FEATURES = range(len(KINDS))
SEGMENT_FIELDS = ("len", "kind", "document", "rows", "columns", "scale", "num_scales")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Packs joined end to end, as they are stored."""

    tokens: Ints
    """(L)."""
    shown: Ints
    """(L) what the trunk is shown in place of each."""
    weights: Floats
    """(L) of each token as a target."""
    segments: dict[str, NDArray[Any]]
    """By name of `SEGMENT_FIELDS`: one entry a segment, kinds as numbers (`KINDS`), documents numbered in order."""


def tokens_of(documents: Sequence[Document]) -> Tokens:
    """Documents end to end."""
    joined = [document.joined() for document in documents]
    rows = [
        (s.length, KINDS.index(s.kind), number, s.grid[1], s.grid[2], s.scale, s.num_scales)
        for number, document in enumerate(documents)
        for s in document.segments
    ]
    return Tokens(
        tokens=np.concatenate([tokens for tokens, _, _ in joined]),
        shown=np.concatenate([shown for _, shown, _ in joined]),
        weights=np.concatenate([weights for _, _, weights in joined]),
        segments=dict(zip(SEGMENT_FIELDS, np.array(rows, np.int64).T, strict=True)),
    )


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the model needs of a batch of documents, joined end to end."""

    lengths: list[int]
    """Places of each document."""
    tokens: Ints
    """(T) shown; 0 where something else stands."""
    targets: Ints
    """(T) token predicted; 0 where none."""
    weights: Floats
    """(T) loss weight; 0 where no token is predicted."""
    said: Ints
    """(T) which of the L tokens is predicted; -1 where none."""
    positions: Floats
    """(T, 3): row, column and scale of a place of a scale, in one range for all scales; elsewhere three times the
    place in the line."""
    line: Ints
    """(T) place in the document."""
    groups: Ints
    """(T) places of one number see each other; `NO_GROUP`: only what came before."""
    scale_at: Ints
    """(S) places of scales."""
    codes: Ints
    """(S, 4) tokens that stand at such a place, or, where grids are said in passes, (S, 9) around it,"""
    roles: NDArray[Any]
    """(S, 4) and their shares, which add up to 1, or (S, 9) their slots."""
    scales: NDArray[np.int64]
    """(S, 2) which scale it is, of how many."""
    latent_at: Ints
    """(P) places of latents,"""
    pictures: Ints
    """(P) and the picture that each belongs to, 0, 1, ... in order."""
    latent_grids: list[tuple[int, int, int]]
    """Frames, rows, columns of each such picture,"""
    text_after: list[bool]
    """and whether text follows it in its document (Transfusion shows such a picture less noise)."""
    feature_at: Ints
    """(Q) places of features."""


def places(given: Tokens, *, span: float = 64.0, interleave: int = 1) -> Places:
    """Derive everything. `span`: rows and columns of a scale lie in 0..span * sqrt(aspect) (NextFlow's C, which its
    paper does not give); `interleave`: that of the layout."""
    seg = given.segments
    ends = np.cumsum(seg["len"])
    starts = ends - seg["len"]
    predictable = (seg["kind"] <= _CODES) | ((seg["kind"] == _SCALE) & (seg["scale"] == 0))
    told = np.append(np.repeat(predictable, seg["len"]), False)
    document = np.append(np.repeat(seg["document"], seg["len"]), -1)

    made = _Builder(given, starts, span, interleave)
    for number, kind in enumerate(seg["kind"].tolist()):
        made.begin(int(seg["document"][number]))
        if kind == _SCALE:
            made.scale(number)
        else:
            made.plain(number, kind)
    return made.done(told, document)


class _Builder:
    """Collects segment by segment; arrays are joined once, at the end."""

    def __init__(self, given: Tokens, starts: Ints, span: float, interleave: int) -> None:
        self.given, self.starts, self.span, self.interleave = given, starts, span, interleave
        self.size = self.line = self.turn = self.group = 0
        self.document = -1
        self.lengths: list[int] = []
        self.own: list[Ints] = []
        self.said: list[Ints] = []
        self.positions: list[Floats] = []
        self.groups: list[Ints] = []
        self.at: dict[int, list[Ints]] = {_SCALE: [], _LATENTS: [], _FEATURES: []}
        self.codes: list[Ints] = []
        self.roles: list[NDArray[Any]] = []
        self.scales: list[Ints] = []
        self.grids: list[tuple[int, int, int]] = []
        self.text_after: list[bool] = []

    def begin(self, document: int) -> None:
        """The next segment belongs to this document."""
        if document != self.document:
            self.document, self.turn = document, 0
            self.lengths.append(0)

    def plain(self, number: int, kind: int) -> None:
        """A segment whose tokens all have a place, one after the other; what each predicts is settled in `done`."""
        start, length = int(self.starts[number]), int(self.given.segments["len"][number])
        own = np.arange(start, start + length)
        turns = np.arange(self.turn, self.turn + length, dtype=np.float32)
        self.own.append(own if kind <= _CODES else np.full(length, -1))
        self.said.append(own + 1 if kind != _LATENTS else np.full(length, -1))
        self.positions.append(np.repeat(turns[:, None], 3, 1))
        if kind == _LATENTS:
            self.group += 1
            seg = self.given.segments
            rows, columns = int(seg["rows"][number]), int(seg["columns"][number])
            self.grids.append((length // (rows * columns), rows, columns))
            later = (seg["document"] == self.document) & (np.arange(len(seg["len"])) > number) & (seg["kind"] == _TEXT)
            self.text_after.append(int(seg["len"][later].sum()) > 1)  # EOS is one
        self.groups.append(np.full(length, self.group if kind == _LATENTS else NO_GROUP))
        if kind > _CODES:
            self.at[kind].append(np.arange(self.size, self.size + length))
        self._grow(length)
        self.turn += length

    def scale(self, number: int) -> None:
        """A grid, or a pass of one, whose places show what is known there; the coarsest has none."""
        seg = self.given.segments
        turn, length = int(seg["scale"][number]), int(seg["len"][number])
        if not turn:
            return
        first = number - turn
        rows, columns = (seg[name][first : number + 1].tolist() for name in ("rows", "columns"))
        grids = tuple(dict.fromkeys(zip(rows, columns, strict=True)))
        self.own.append(np.full(length, -1))
        self.said.append(np.arange(self.starts[number], self.starts[number] + length))
        self.positions.append(scale_places(grids[-1], turn, self.span)[passes_of(grids, self.interleave)[turn][1]])
        self.group += 1
        self.groups.append(np.full(length, self.group))
        self.at[_SCALE].append(np.arange(self.size, self.size + length))
        index, role = shown_codes(grids, self.interleave, turn)
        self.codes.append(self.given.shown[self.starts[first] + index])
        self.roles.append(role)
        self.scales.append(np.tile([turn, seg["num_scales"][number]], (length, 1)))
        self._grow(length)

    def _grow(self, length: int) -> None:
        self.size += length
        self.lengths[-1] += length

    def done(self, told: NDArray[np.bool_], document: Ints) -> Places:
        """All of it joined. A place predicts a token only if that stands in its own document and can be predicted."""
        given = self.given
        own, said = _joined(self.own), _joined(self.said)
        by_place = np.repeat(document[np.flatnonzero(np.diff(document, prepend=-2))[: len(self.lengths)]], self.lengths)
        scale_at = _joined(self.at[_SCALE])
        held = (said >= 0) & (document[said] == by_place)
        own_code = np.zeros(len(said), bool)
        own_code[scale_at] = True
        said = np.where(held & (told[said] | own_code), said, -1)
        latents = [len(part) for part in self.at[_LATENTS]]
        shown = NEIGHBOURS if self.interleave > 1 else 4
        return Places(
            lengths=self.lengths,
            tokens=np.where(own >= 0, given.shown[own], 0),
            targets=np.where(said >= 0, given.tokens[said], 0),
            weights=np.where(said >= 0, given.weights[said], np.float32(0)).astype(np.float32),
            said=said,
            positions=np.concatenate(self.positions),
            line=np.concatenate([np.arange(n) for n in self.lengths]),
            groups=_joined(self.groups),
            scale_at=scale_at,
            codes=np.concatenate(self.codes) if self.codes else np.zeros((0, shown), np.int64),
            roles=np.concatenate(self.roles) if self.roles else np.zeros((0, shown), np.float32),
            scales=_joined(self.scales).reshape(-1, 2),
            latent_at=_joined(self.at[_LATENTS]),
            pictures=np.repeat(np.arange(len(latents)), latents),
            latent_grids=self.grids,
            text_after=self.text_after,
            feature_at=_joined(self.at[_FEATURES]),
        )


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts).astype(np.int64) if len(parts) else np.zeros(0, np.int64)


@functools.lru_cache(maxsize=4096)
def scale_places(sides: tuple[int, int], scale: int, span: float) -> Floats:
    """(n, 3) row, column and scale of every place of a grid; rows and columns at the middles of their places, in one
    range for all scales: span / sqrt(HW) * (i + 0.5) (arXiv 2601.02204, multiscale 3-D RoPE)."""
    rows, columns = sides
    step = span / (rows * columns) ** 0.5
    place = np.empty((rows * columns, 3), np.float32)
    place[:, 0] = np.repeat((np.arange(rows) + 0.5) * step, columns)
    place[:, 1] = np.tile((np.arange(columns) + 0.5) * step, rows)
    place[:, 2] = scale
    return place


def shown_codes(grids: tuple[tuple[int, int], ...], interleave: int, turn: int) -> tuple[Ints, NDArray[Any]]:
    """(n, N) what each place of a pass shows, by turns among the codes of its frame as they are said, and its role."""
    if interleave > 1:
        return around(grids, interleave)[turn]
    index, share = blended(*grids[turn - 1 : turn + 1])
    return num_places(grids[: turn - 1]) + index, share


@functools.lru_cache(maxsize=4096)
def blended(before: tuple[int, int], now: tuple[int, int]) -> tuple[Ints, Floats]:
    """(n, 4) places of the coarser grid that each place of this one is blended from, and their shares (n, 4).

    Bilinear, edges as torch's `interpolate(mode="bilinear", align_corners=False)`. How NextFlow enlarges what it
    shows is not published; TokenFlow's and VAR's own sums are bicubic.
    """
    (low_r, high_r, share_r), (low_c, high_c, share_c) = (
        _neighbours(old, new) for old, new in zip(before, now, strict=True)
    )
    index = np.empty((now[0], now[1], 4), np.int64)
    share = np.empty((now[0], now[1], 4), np.float32)
    for corner in range(4):
        row, row_share = (high_r, share_r) if corner & 2 else (low_r, 1 - share_r)
        column, column_share = (high_c, share_c) if corner & 1 else (low_c, 1 - share_c)
        index[..., corner] = row[:, None] * before[1] + column[None, :]
        share[..., corner] = row_share[:, None] * column_share[None, :]
    return index.reshape(-1, 4), share.reshape(-1, 4)


def _neighbours(old: int, new: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """For each of `new` places along one side: the two of `old` around it, and the share of the second."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
    low = np.minimum(at.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), at - low
