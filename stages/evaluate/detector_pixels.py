"""A detector without weights: objects of a plain drawing, by fitting the little world's shapes to it. Not a stage.

Each spot that stands out from the ground is turned into a share of object in every pixel (0 ground, 1 object). Its
mass is the object's area and its centre of mass the object's centre, so of a shape only the turn and the blur are
unknown: all are tried, and the one that explains the shares best names the object. An analysis by synthesis: a blurred
edge costs nothing, which is what small pictures redrawn from codes have everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages import sample_world as world
from stages.drawings import FLAT, colour_name, distance_from_ground

if TYPE_CHECKING:
    Picture = NDArray[np.uint8]

REVISION = 1
"""Bumped when the same picture gives other objects."""
OTHER = "other"
"""Name of what stands out and is none of the shapes."""
SIDE = 64
"""Pictures are looked at with this short side in pixels; smaller ones are enlarged."""
_LEAST = 0.006
"""Smallest object, share of the squared short side: half the area of the world's smallest."""
_SURE = 0.8
"""Least overlap with a shape for it to be that shape, and not `OTHER`."""
_TURNS = (-12, -6, 0, 6, 12)
"""Degrees: the world turns things by up to 12."""
_BLURS = (0.0, 0.8, 1.3)
"""Deviations of the blur in pixels at `SIDE`."""
_SUPER = 4
"""Pixels of a fitted shape are drawn from so many times so many."""
_MOST_OBJECTS = 16
"""As GenEval takes of a class (djghosh13/geneval@af4902f2)."""


@dataclass(frozen=True)
class _Spot:
    """What stands out in one place: shares of object [h, w], where its corner lies, and its colour (RGB)."""

    share: NDArray[np.float32]
    left: int
    top: int
    colour: NDArray[np.float32]


def detected(picture: Picture) -> Mapping[str, Any]:
    """Evidence "objects" (stages/evaluate/suite.py) of a picture (RGB [H, W, 3]); `score` is the overlap, 0 to 1.

    Sizes: an object's `radius` is that of the circle of equal area, in short sides.
    """
    import cv2

    height, width = picture.shape[:2]
    zoom = SIDE / min(height, width)
    if zoom != 1:
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        size = (round(width * zoom), round(height * zoom))
        picture = np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)
    found = [_object(spot, zoom) for spot in _spots(picture)]
    found = sorted(found, key=lambda one: (-one["score"], one["box"]))[:_MOST_OBJECTS]
    return {"objects": found, "size": [width, height]}


def _spots(picture: Picture) -> Iterator[_Spot]:
    """What stands out, thing by thing; things that touch are parted where the picture is half-way to the ground."""
    import cv2

    ground, distance = distance_from_ground(picture)
    count, labels = cv2.connectedComponents((distance > FLAT).astype(np.uint8), connectivity=4)
    for label in range(1, count):
        inside = labels == label
        if inside.sum() < _LEAST * SIDE * SIDE:
            continue
        for core in _parts(picture, distance, inside):
            spot = _spot(picture, ground, distance, core, inside)
            if spot is not None:
                yield spot


def _parts(picture: Picture, distance: NDArray[np.int16], inside: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The cores of what stands out together: by colour, and where it is more than half-way to the strongest."""
    import cv2

    strong = inside & (distance > 0.5 * np.percentile(distance[inside], 90))
    names = np.full(inside.shape, "", object)
    names[strong] = [_hue(pixel) for pixel in picture[strong]]
    cores = []
    for name in sorted(set(names[strong])):
        # Between two colours stand all those between them: an opening by 2x2 leaves no rim of one pixel.
        own = cv2.morphologyEx((names == name).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        count, labels = cv2.connectedComponents(own, connectivity=4)
        for label in range(1, count):
            core = labels == label
            if core.sum() >= _LEAST * SIDE * SIDE:
                cores.append(core)
    return cores


def _hue(pixel: NDArray[np.uint8]) -> str:
    """The colour's name among the world's; what mixes with the ground keeps its hue, so greys go with no name."""
    name = colour_name(pixel)
    return {"pink": "red", "brown": "orange", "beige": "orange"}.get(name, name)


def _spot(
    picture: Picture,
    ground: NDArray[np.float64],
    distance: NDArray[np.int16],
    core: NDArray[np.bool_],
    inside: NDArray[np.bool_],
) -> _Spot | None:
    """Shares of object around a core: how far each pixel is on the way from the ground's colour to the core's."""
    import cv2

    depth = cv2.distanceTransform(np.pad(core.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    colour = np.median(picture[depth > 0.5 * depth.max()], axis=0).astype(np.float32)
    way = colour - ground
    near = cv2.dilate(core.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    share = ((picture - ground) @ way / max(1.0, float(way @ way))).clip(0, 1) * near
    rows, columns = np.nonzero(near)
    top, left = max(0, rows.min() - 2), max(0, columns.min() - 2)
    cut = share[top : rows.max() + 3, left : columns.max() + 3].astype(np.float32)
    return _Spot(cut, int(left), int(top), colour) if cut.sum() >= _LEAST * SIDE * SIDE else None


def _object(spot: _Spot, zoom: float) -> dict[str, Any]:
    """The object that explains a spot best, in pixels of the picture as it came."""
    mass = float(spot.share.sum())
    rows, columns = np.indices(spot.share.shape)
    x, y = float((spot.share * columns).sum()) / mass, float((spot.share * rows).sum()) / mass
    radius = math.sqrt(mass / math.pi)
    overlap, name = max((_overlap(spot.share, shape, x, y, radius), shape) for shape in world.SHAPES)
    solid_rows, solid_columns = np.nonzero(spot.share > 0.5)
    box = (
        spot.left + solid_columns.min(), spot.top + solid_rows.min(),
        spot.left + solid_columns.max() + 1, spot.top + solid_rows.max() + 1,
    )  # fmt: skip
    return {
        "name": name if overlap >= _SURE else OTHER,
        "colour": colour_name(spot.colour),
        "box": [round(float(edge) / zoom, 2) for edge in box],
        "score": round(overlap, 4),
        "radius": round(radius / SIDE, 4),
    }


def _overlap(share: NDArray[np.float32], shape: str, x: float, y: float, radius: float) -> float:
    """Most that any turn and blur of the shape has in common with the shares: 1 - |a - b| / (a + b), summed."""
    import cv2

    best = 0.0
    for turn in _TURNS if shape != "circle" else (0,):
        sharp = _drawn(shape, turn, share.shape, x, y, radius)
        for blur in _BLURS:
            fitted = cv2.GaussianBlur(sharp, (0, 0), blur) if blur else sharp
            apart = float(np.abs(fitted - share).sum()) / float(fitted.sum() + share.sum())
            best = max(best, 1 - apart)
    return best


@functools.cache
def _corners(shape: str, turn: float) -> NDArray[np.float64]:
    return world.outline(shape, turn)


def _drawn(shape: str, turn: float, size: tuple[int, ...], x: float, y: float, radius: float) -> NDArray[np.float32]:
    """Shares of object of a shape whose centre, in pixel centres, is (x, y)."""
    import cv2

    mask = np.zeros((size[0] * _SUPER, size[1] * _SUPER), np.uint8)
    corners = (_corners(shape, turn) * radius + np.array([x + 0.5, y + 0.5])) * _SUPER - 0.5
    cv2.fillPoly(mask, [np.rint(corners * 64).astype(np.int32)], 1, shift=6)
    shares = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(shares, np.float32)
