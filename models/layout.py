"""How a recipe writes a document: texts and pictures in order become tokens, typed segments and loss weights.

    document    BOS, its parts in order, EOS; a part is a text or a picture (a clip)
    codes       block of models/raster.py: the tokens of one grid of codes between marks
    scales      head, then every grid from coarse to fine, each at once or in passes, of a film frame after frame with
                EOF between, eoi
    latents     head, a place for each vector, eoi
    features    head, a place for each vector of an understanding encoder, eoi

Tokens stand in the order in which they are said. What the trunk is shown at which place is derived from the segments
(models/places.py): of scales and latents it is not the token before. Imports no torch, so that packing stays cheap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models import raster
from models.raster import Grid, Marks, TextTokenizer
from models.tokenizers.scales import num_places, passes_of, scale_weights
from models.tokenizers.shapes import plain, since
from models.vocabulary import VISION, Vocabulary

Kind = Literal["text", "marks", "codes", "scale", "latents", "features"]
KINDS: tuple[Kind, ...] = ("text", "marks", "codes", "scale", "latents", "features")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The choices that define how a document is written and what of it is learnt."""

    vision: Literal["codes", "scales", "latents"]
    """What a picture is: one grid of codes, grids from coarse to fine, or latents."""
    marks: Marks = field(default_factory=Marks)
    """What stands among codes; `size` holds for every kind."""
    features: bool = False
    """Pictures that are read, not drawn, are features of an understanding encoder (Janus)."""
    text_weight: float = 1.0
    vision_weight: float = 1.0
    """Loss weights of text, and of the tokens of a picture from boi to eoi (Emu3: 0.5)."""
    scale_alpha: float = 0.0
    """Codes of a scale of n places weigh n^-alpha, their sum unchanged (NextFlow: 0.9 from 512 pixels on)."""
    supervise: Literal["all", "vision", "last"] = "all"
    """What is learnt: everything, visual codes alone (Emu3's fine-tuning), or the last part alone (Janus)."""
    interleave: int = since(1)
    """1: a grid of scales is said at once, and its places show the coarser one (NextFlow). 2, 4 ...: it is said in that
    number squared of passes, and a place shows what of it and of the coarser one is said around it (`passes_of` and
    models/around.py)."""

    def __post_init__(self) -> None:
        side = self.interleave
        if side < 1 or side & (side - 1) or (side > 1 and self.vision != "scales"):
            raise ValueError(
                f"layout.interleave={side} with layout.vision={self.vision}: give 1, or with vision=scales 2, 4, 8 ..."
            )


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout with the numbers that the data brought: all that is needed to write and read documents."""

    layout: Layout
    vocabulary: Vocabulary
    latent_size: int = 0
    """C, numbers of a latent; 0: none."""
    latent_mean: float = 0.0
    latent_std: float = 1.0
    """Of the latents in training; models see (x - mean) / std."""
    feature_size: int = 0
    """Numbers of a feature; 0: none."""

    def to_json(self) -> str:
        """One line, keys sorted: equal formats give equal text."""
        return json.dumps(asdict(self) | {"layout": plain(self.layout)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Format:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = json.loads(text)
        layout: dict[str, Any] = plain.pop("layout")
        vocabulary = Vocabulary(**plain.pop("vocabulary"))
        marks = Marks(**layout.pop("marks"))
        return cls(layout=Layout(marks=marks, **layout), vocabulary=vocabulary, **plain)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What extraction left of one clip: codes, or latents, or features, in the order of their grids."""

    grids: tuple[Grid, ...]
    ids: NDArray[np.int64] | None = None
    input_ids: NDArray[np.int64] | None = None
    """What a model is shown instead of `ids` (self-correction)."""
    vectors: NDArray[np.float16] | None = None
    """(t*h*w, C) latents, or"""
    features: bool = False
    """features of an understanding encoder."""
    fps: float | None = None
    duration_s: float | None = None


Part = list[int] | Picture
"""Ids of a text, or a picture."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens of one kind in a row."""

    kind: Kind
    length: int
    grid: Grid = (0, 0, 0)
    """Of codes, latents, features; of a scale its own (1, h, w)."""
    scale: int = 0
    """Place of a scale, or of a pass, among those of its frame, and their number."""
    num_scales: int = 0


def spans(segments: Sequence[Segment]) -> list[tuple[int, bool]]:
    """Places of each segment in the trunk, and whether they see each other both ways (for `flops.segment_pairs`).

    Every token has a place but the coarsest code of a frame, which the place before it predicts.
    """
    return [
        (segment.length, segment.kind in ("scale", "latents"))
        for segment in segments
        if segment.kind != "scale" or segment.scale
    ]


@dataclass(kw_only=True)
class Document:
    """One sequence that attends to no other, L tokens."""

    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    shown: list[NDArray[np.int64]] = field(default_factory=list)
    weights: list[NDArray[np.float32]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    latents: list[NDArray[np.float16]] = field(default_factory=list)
    features: list[NDArray[np.float16]] = field(default_factory=list)

    def add(
        self,
        tokens: Sequence[int] | NDArray[np.int64],
        segment: Segment,
        weight: float,
        shown: NDArray[np.int64] | None = None,
    ) -> None:
        """A segment at the end."""
        ids = np.asarray(tokens, np.int64)
        if not len(ids):
            return
        self.tokens.append(ids)
        self.shown.append(ids if shown is None else shown)
        self.weights.append(np.full(len(ids), weight, np.float32))
        self.segments.append(segment)

    def joined(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Tokens, what is shown instead, and loss weights, (L) each."""
        return np.concatenate(self.tokens), np.concatenate(self.shown), np.concatenate(self.weights)


def document(parts: Sequence[Part], form: Format, text: TextTokenizer, *, ended: bool = True) -> Document:
    """BOS, parts, EOS (unless the text goes on elsewhere), with its segments. The first token is never learnt."""
    layout, vocabulary = form.layout, form.vocabulary
    made = Document()
    made.add([vocabulary.bos], Segment(kind="text", length=1), 0.0)
    for number, part in enumerate(parts):
        learnt = layout.supervise != "last" or number == len(parts) - 1
        if isinstance(part, Picture):
            _picture(made, part, form, text, layout.vision_weight if learnt else 0.0)
        else:
            weight = layout.text_weight if learnt and layout.supervise != "vision" else 0.0
            made.add(part, Segment(kind="text", length=len(part)), weight)
    if ended:
        weight = layout.text_weight if layout.supervise != "vision" else 0.0
        made.add([vocabulary.eos], Segment(kind="text", length=1), weight)
    return made


def opened(
    parts: Sequence[Part], size: str, form: Format, text: TextTokenizer, begun: Picture | None = None
) -> Document:
    """What comes before a picture that is to be drawn: BOS, parts, head of its block (with its size in words), and of
    a film that is continued its first frames."""
    made = document(parts, form, text, ended=False)
    begins = raster.head(size, form.vocabulary, text, form.layout.marks)
    made.add(begins, Segment(kind="marks", length=len(begins)), 0.0)
    if begun is not None and begun.ids is not None:
        _payload(made, begun, form, 0.0)
    return made


def _picture(made: Document, picture: Picture, form: Format, text: TextTokenizer, weight: float) -> None:
    """Head, payload, eoi."""
    layout, vocabulary = form.layout, form.vocabulary
    grid = finest(picture.grids)
    size = raster.size_text(grid, picture.fps, picture.duration_s)
    marked = 0.0 if layout.supervise == "vision" else weight
    begins = raster.head(size, vocabulary, text, layout.marks)
    made.add(begins, Segment(kind="marks", length=len(begins)), marked)
    if picture.ids is None:
        _vectors(made, picture, grid, vocabulary)
    else:
        _payload(made, picture, form, weight)
    # nothing predicts what follows a finest scale or a latent: their places predict themselves
    ended = marked if picture.ids is not None and layout.vision == "codes" else 0.0
    made.add([vocabulary.eoi], Segment(kind="marks", length=1), ended)


def _payload(made: Document, picture: Picture, form: Format, weight: float) -> None:
    """Codes of one grid between their marks, or of scales."""
    assert picture.ids is not None
    layout, vocabulary, grid = form.layout, form.vocabulary, finest(picture.grids)
    if layout.vision == "scales":
        _scales(made, picture, form, weight)
        return
    codes = raster.payload(grid, picture.ids, vocabulary, layout.marks)
    made.add(codes, Segment(kind="codes", length=len(codes), grid=grid), weight)
    made.weights[-1][vocabulary.modality(codes) != VISION] = 0.0 if layout.supervise == "vision" else weight


def _vectors(made: Document, picture: Picture, grid: Grid, vocabulary: Vocabulary) -> None:
    assert picture.vectors is not None
    (made.features if picture.features else made.latents).append(picture.vectors)
    kind: Kind = "features" if picture.features else "latents"
    places = [vocabulary.pad] * len(picture.vectors)
    made.add(places, Segment(kind=kind, length=len(places), grid=grid), 0.0)


def _scales(made: Document, picture: Picture, form: Format, weight: float) -> None:
    """Frame after frame, each from its coarsest grid, which is one place, to its finest."""
    assert picture.ids is not None
    vocabulary = form.vocabulary
    frames = _frames(picture.grids)
    shown = picture.ids if picture.input_ids is None else picture.input_ids
    at = 0
    for frame, grids in enumerate(frames):
        if frame:
            made.add([vocabulary.eof], Segment(kind="marks", length=1), 0.0)
        sides = tuple(grid[1:] for grid in grids)
        weights, passes = scale_weights(sides, form.layout.scale_alpha), passes_of(sides, form.layout.interleave)
        for turn, (number, places) in enumerate(passes):
            these = at + num_places(sides[:number]) + places
            segment = Segment(kind="scale", length=len(these), grid=grids[number], scale=turn, num_scales=len(passes))
            seen = vocabulary.visual(shown[these])
            made.add(vocabulary.visual(picture.ids[these]), segment, weight * weights[number], seen)
        at += num_places(sides)


def _frames(grids: Sequence[Grid]) -> list[list[Grid]]:
    """Grids by frame: a frame begins at one place and ends at the finest grid."""
    frames: list[list[Grid]] = []
    for grid in grids:
        if grid[1:] == (1, 1):
            frames.append([])
        if not frames:
            raise ValueError(f"the coarsest grid is {grid[1]}x{grid[2]}: a next-scale document begins with one place")
        frames[-1].append(grid)
    return frames


def finest(grids: Sequence[Grid]) -> Grid:
    """Frames, rows and columns of the finest grid."""
    if len(grids) == 1:
        return grids[0]
    return (sum(grid[1:] == (1, 1) for grid in grids), *grids[-1][1:])
