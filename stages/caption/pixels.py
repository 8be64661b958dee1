"""A captioner without weights: says what can be measured in the pixels, in one sentence, the same every time.

Plain drawings (few things of one colour each on a plain background) are named thing by thing: size, colour, shape,
count, relation, motion. Anything else gets its brightness, main colours, amount of motion and the text in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.drawings import FLAT, PLAIN, colour_name, distance_from_ground

if TYPE_CHECKING:
    import numpy as np

SHORT_SIDE = 160
"""Pictures are read at this short side (pixels), never enlarged: shapes are plain at it, and it costs 1 ms."""
_LEAST = 0.004
"""Smallest thing, share of the squared short side: radius 4.5 pixels at 128."""
_MOST_THINGS = 6
_LARGE = 0.145
"""Radius of the circle of equal area, in short sides, from which a thing is large: half-way between the sample
world's small (to 0.115) and large (from 0.175)."""
_MOVED = 0.06
"""Way of the centre over the frames looked at, in short sides, from which things move."""
_GROWN = 1.35
"""Area at the end over the start from which things grow."""
_SPECKS = 0.003
"""Outline of what is too small for a thing, in pixels over the squared short side, from which a plain drawing may hold
text: a word or two of a twentieth of the short side. One frame in a hundred of the sample corpus has as much."""
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True)
class Thing:
    """One object in a picture: words for it, centre (x, y) and area in short sides."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    area: float

    def words(self) -> tuple[str, str, str]:
        """What it is called; equal things form a group."""
        return self.size, self.colour, self.shape


@dataclass(frozen=True)
class View:
    """What a picture holds: a background by name, things in order of place, and how much too small for a thing."""

    background: str
    things: tuple[Thing, ...]
    specks: float

    def content(self) -> tuple[tuple[str, str, str], ...]:
        """What is there, without places."""
        return tuple(sorted(thing.words() for thing in self.things))


def caption(pictures: Sequence[np.ndarray], text: Callable[[], str] = str) -> str:
    """The sentence for a clip's pictures (uint8 RGB [H, W, 3], in order of time; one for a still).

    `text` reads what is written in the clip; it is asked only where shapes on a plain background are not all of it.
    """
    views = [view for view in (seen(picture) for picture in pictures) if view is not None]
    if len(views) * 2 > len(pictures):
        # Frames that fade or blur are outvoted; ties go to the content seen first.
        content, _ = Counter(view.content() for view in views).most_common(1)[0]
        alike = [view for view in views if view.content() == content]
        said = _drawing(alike, moving=len(pictures) > 1)
        written = text() if alike[len(alike) // 2].specks > _SPECKS else ""
    else:
        said, written = _footage(pictures), text()
    return f'{said}, with the text "{written}"' if written else said


def seen(picture: np.ndarray) -> View | None:
    """The plain drawing in a picture, or None where it is none."""
    import cv2
    import numpy as np

    short = min(picture.shape[:2])
    calm = cv2.GaussianBlur(picture, (3, 3), 0)
    ground, distance = distance_from_ground(calm)
    apart = distance > FLAT
    if apart.mean() > 1 - PLAIN:
        return None
    background = colour_name(ground)
    things, specks = [], 0
    outlines, _ = cv2.findContours(apart.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for outline in outlines:
        area = cv2.contourArea(outline)
        if area < _LEAST * short * short:
            specks += len(outline)
            continue
        thing = _thing(calm, outline, area, short)
        if thing is None or len(things) == _MOST_THINGS:
            return None
        things.append(thing)
    placed = sorted(things, key=lambda thing: (thing.words(), thing.x, thing.y))
    return View(background, tuple(placed), specks / (short * short))


def _thing(picture: np.ndarray, outline: np.ndarray, area: float, short: int) -> Thing | None:
    """One object of plain colour and plain shape; None where it is neither."""
    import cv2
    import numpy as np

    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.drawContours(mask, [outline], -1, 1, -1)
    # The half that lies deepest: compression smears colour over three pixels at the edge of a small thing.
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[1:-1, 1:-1]
    pixels = picture[depth > 0.5 * depth.max()]
    if (np.abs(pixels - np.median(pixels, axis=0)).max(axis=1) > FLAT).mean() > 0.2:
        return None
    shape = _shape(outline, area)
    if shape is None:
        return None
    moments = cv2.moments(outline)
    # The outline runs through the middle of the edge pixels: half a pixel is missing all around.
    whole = area + cv2.arcLength(outline, True) / 2
    return Thing(
        size="large" if math.sqrt(whole / math.pi) / short >= _LARGE else "small",
        colour=colour_name(np.median(pixels, axis=0)),
        shape=shape,
        x=moments["m10"] / moments["m00"] / short,
        y=moments["m01"] / moments["m00"] / short,
        area=whole / short / short,
    )


def _shape(outline: np.ndarray, area: float) -> str | None:
    """The plain shape that fills its hull, its smallest triangle, rectangle or circle best; None where none does."""
    import cv2

    hull = cv2.convexHull(outline)
    (_, (width, height), _) = cv2.minAreaRect(outline)
    if area < 0.8 * cv2.contourArea(hull):
        # A star of five points with inner radius 0.45 fills 0.77 of the area of its hull (a pentagon), and is about
        # as long as wide: a line of small text is not.
        squat = max(width, height) < 1.5 * min(width, height)
        return "star" if squat and area > 0.45 * cv2.contourArea(hull) else None
    triangle, _ = cv2.minEnclosingTriangle(outline)
    _, radius = cv2.minEnclosingCircle(outline)
    fill = {
        "triangle": area / max(1.0, triangle),
        "square": area / max(1.0, width * height),
        "circle": area / max(1.0, math.pi * radius * radius),
    }
    shape = max(fill, key=lambda name: fill[name])
    if fill[shape] < 0.75:
        return None
    return "rectangle" if shape == "square" and max(width, height) > 1.3 * min(width, height) else shape


_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "star")


def _rank(words: tuple[str, str, str]) -> tuple[int, int, int]:
    """The order of naming: large before small, then by colour, then by shape, unknown words last."""
    size, colour, shape = words
    place = _COLOURS.index(colour) if colour in _COLOURS else len(_COLOURS)
    return size != "large", place, _SHAPES.index(shape) if shape in _SHAPES else len(_SHAPES)


def _drawing(views: Sequence[View], moving: bool) -> str:
    """The sentence for a plain drawing: who, where to each other, on what, moving how."""
    first = views[len(views) // 2]
    if not first.things:
        return f"a plain {first.background} picture"
    groups = sorted(Counter(thing.words() for thing in first.things).items(), key=lambda item: _rank(item[0]))
    names = [_named(words, count) for words, count in groups]
    if len(groups) == 2:
        said = f" {_relation(first, groups[0][0], groups[1][0])} ".join(names)
    else:
        said = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    said += f" on a {first.background} background"
    return f"{said}, {_motion(views)}" if moving else said


def _named(words: tuple[str, str, str], count: int) -> str:
    if count == 1:
        return f"a {' '.join(words)}"
    return f"{_NUMBERS[count]} {' '.join(words)}s"


def _relation(view: View, one: tuple[str, str, str], other: tuple[str, str, str]) -> str:
    """Where the first group lies, seen from the second, by their mean centres."""
    centres = []
    for words in (one, other):
        group = [thing for thing in view.things if thing.words() == words]
        centres.append((sum(t.x for t in group) / len(group), sum(t.y for t in group) / len(group)))
    (x, y), (other_x, other_y) = centres
    if abs(x - other_x) > abs(y - other_y):
        return "to the left of" if x < other_x else "to the right of"
    return "above" if y < other_y else "below"


def _motion(views: Sequence[View]) -> str:
    """How all things go together, from the first to the last view."""
    start, end = views[0].things, views[-1].things
    across = sum(b.x - a.x for a, b in zip(start, end, strict=True)) / len(start)
    down = sum(b.y - a.y for a, b in zip(start, end, strict=True)) / len(start)
    if max(abs(across), abs(down)) >= _MOVED:
        if abs(across) > abs(down):
            return "moving right" if across > 0 else "moving left"
        return "moving down" if down > 0 else "moving up"
    growth = sum(thing.area for thing in end) / sum(thing.area for thing in start)
    return "growing" if growth >= _GROWN else "shrinking" if growth <= 1 / _GROWN else "still"


def _footage(pictures: Sequence[np.ndarray]) -> str:
    """The sentence for real footage: light, main colours, amount of motion."""
    import cv2
    import numpy as np

    small = np.stack([cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA) for picture in pictures])
    middle = small[len(small) // 2].reshape(-1, 3)
    colours = [name for name, _ in Counter(colour_name(pixel) for pixel in middle).most_common(2)]
    light = float(small.mean())
    tone = "dark" if light < 70 else "bright" if light > 180 else "evenly lit"
    article = "an" if tone[0] in "aeiou" else "a"
    said = f"{article} {tone} scene, mostly {' and '.join(dict.fromkeys(colours))}"
    if len(small) == 1:
        return said
    change = float(np.abs(np.diff(small.astype(np.int16), axis=0)).mean())
    pace = "hardly moving" if change < 3 else "moving slowly" if change < 12 else "moving fast"
    return f"{said}, {pace}"
