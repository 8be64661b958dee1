"""The little world of the sample corpus: its grammar, its wording and how it is drawn.

A scene is one or two groups of equal objects on a plain background, all moving alike. Sizes are measured in short
sides of the frame, so one scene can be drawn at any resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 160, 65),
    "blue": (40, 85, 210),
    "yellow": (245, 205, 40),
    "purple": (135, 50, 165),
    "orange": (245, 125, 25),
}
BACKGROUNDS = {"white": (244, 244, 244), "grey": (132, 132, 132), "black": (26, 26, 26), "beige": (222, 200, 160)}
"""Black is not 0: a film's black is the fade, and PySceneDetect takes a mean under 12 for one."""
SIZES = {"small": (0.085, 0.115), "large": (0.175, 0.22)}
"""Radius of the circle of equal area, in short sides."""
RELATIONS = {"to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""Step from the first group to the second, x to the right and y down."""
INVERSE = {"to the left of": "to the right of", "to the right of": "to the left of", "above": "below", "below": "above"}
MOTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "growing": (0, 0)}

HELD_PAIRS = (("star", "blue"), ("triangle", "green"), ("square", "purple"))
"""Shape and colour that appear together in no file of the corpus."""
HELD_RELATIONS = (
    ("circle", "above", "square"),
    ("triangle", "to the left of", "star"),
    ("square", "below", "triangle"),
    ("star", "to the right of", "circle"),
)
"""Shape, relation, shape that appear in no file of the corpus, in neither direction of saying it."""

_REACH = {"circle": 1.0, "square": 1.2533, "triangle": 1.5551, "star": 1.5413}
"""Circumscribed circle's radius over the radius of the circle of equal area. Square: sqrt(pi/2). Triangle:
sqrt(4 pi / (3 sqrt 3)). Star with inner radius 0.45: sqrt(pi / (10 * 0.45 / 2 * sin 36 deg))."""
_STAR_INNER = 0.45
_GROWTH = 4.0
"""A growing object's area at the end over the start; its stated radius is reached half-way."""
_WAY = (0.45, 0.75)
"""How far things move in a scene, in short sides: 0.1 to 0.5 a second."""


@dataclass(frozen=True)
class Thing:
    """What one object is; equal things form a group."""

    shape: str
    colour: str
    size: str

    def rank(self) -> tuple[int, int, int]:
        """The order of naming: large before small, then by colour, then by shape as the world lists them."""
        return (self.size != "large", list(COLOURS).index(self.colour), SHAPES.index(self.shape))


@dataclass(frozen=True)
class Scene:
    """What is to be seen: groups of (thing, count), the relation of the first to the second, background, motion."""

    groups: tuple[tuple[Thing, int], ...]
    relation: str | None
    background: str
    motion: str

    def caption(self, moving: bool) -> str:
        """The sentence for it; stills say nothing of motion."""
        return sentence(self.groups, self.relation, self.background, self.motion if moving else None)


def sentence(
    groups: tuple[tuple[Thing, int], ...], relation: str | None, background: str | None, motion: str | None
) -> str:
    """One sentence of the world, the same words from the corpus and from the captioner of pixels."""
    said = f" {relation} ".join(named(thing, count) for thing, count in groups) if relation else listed(groups)
    if background:
        said += f" on a {background} background"
    if motion is None:
        return said
    return f"{said}, " + (motion if motion in ("still", "growing") else f"moving {motion}")


def listed(groups: tuple[tuple[Thing, int], ...]) -> str:
    """Groups without a relation, joined by commas and "and"."""
    names = [named(thing, count) for thing, count in groups]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def named(thing: Thing, count: int) -> str:
    """One group in words: "a large red circle", "three small blue stars"."""
    if count == 1:
        article = "an" if thing.size[:1] in "aeiou" else "a"
        return f"{article} {thing.size} {thing.colour} {thing.shape}"
    number = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}.get(count, "many")
    return f"{number} {thing.size} {thing.colour} {thing.shape}s"


def allowed(scene: Scene) -> bool:
    """Whether the scene shows nothing that is held back."""
    if any((thing.shape, thing.colour) in HELD_PAIRS for thing, _ in scene.groups):
        return False
    if scene.relation is None:
        return True
    (first, _), (second, _) = scene.groups
    said = (first.shape, scene.relation, second.shape)
    turned = (second.shape, INVERSE[scene.relation], first.shape)
    return said not in HELD_RELATIONS and turned not in HELD_RELATIONS


def imagined(rng: np.random.Generator, motion: str, background: str | None = None) -> Scene:
    """A scene of the grammar that is allowed: half of them with one group, half with two in a relation."""
    while True:
        kinds = [
            Thing(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), str(rng.choice(list(SIZES), p=[0.55, 0.45])))
            for _ in range(2)
        ]
        ground = background or str(rng.choice(list(BACKGROUNDS)))
        if motion == "growing" or rng.random() < 0.5:
            count = 1 if motion == "growing" else int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
            if count > 1 and kinds[0].size == "large":
                continue
            scene = Scene(((kinds[0], count),), None, ground, motion)
        else:
            first, second = sorted(kinds, key=Thing.rank)
            spare = first.size == "small" and second.size == "small" and rng.random() < 0.3
            if first == second or (first.size == "large" and second.size == "large"):
                continue
            groups = ((first, 1), (second, 2)) if spare else ((first, 1), (second, 1))
            scene = Scene(groups, str(rng.choice(list(RELATIONS))), ground, motion)
        if allowed(scene):
            return scene


@dataclass(frozen=True)
class Layout:
    """Where things are: per object its thing, centre (x, y), radius and turn; and the way all go, in short sides."""

    objects: tuple[tuple[Thing, float, float, float, float], ...]
    travel: tuple[float, float]
    growth: float


def laid_out(rng: np.random.Generator, scene: Scene, width: float, height: float) -> Layout | None:
    """Places for the objects in a frame of `width` x `height` short sides; None where 60 tries find no room."""
    step = MOTIONS[scene.motion]
    growth = _GROWTH if scene.motion == "growing" else 1.0
    for _ in range(60):
        objects, way = [], float(rng.uniform(*_WAY))
        for thing, count in scene.groups:
            radius = float(rng.uniform(*SIZES[thing.size]))
            for _ in range(count):
                reach = radius * _REACH[thing.shape] * _peak(growth) + 0.015
                room_x, room_y = reach + abs(step[0]) * way / 2, reach + abs(step[1]) * way / 2
                if room_x * 2 >= width or room_y * 2 >= height:
                    return None
                x, y = rng.uniform(room_x, width - room_x), rng.uniform(room_y, height - room_y)
                objects.append((thing, float(x), float(y), radius, float(rng.uniform(-12, 12))))
        if _apart(objects) and _related(scene, objects):
            return Layout(tuple(objects), (step[0] * way, step[1] * way), growth)
    return None


def _peak(growth: float) -> float:
    """Largest radius over the stated one, where the area grows `growth` times in even steps."""
    return math.sqrt(growth / ((1 + growth) / 2))


def _apart(objects: list[tuple[Thing, float, float, float, float]]) -> bool:
    return all(
        math.dist(one[1:3], other[1:3]) > one[3] * _REACH[one[0].shape] + other[3] * _REACH[other[0].shape] + 0.03
        for index, one in enumerate(objects)
        for other in objects[:index]
    )


def _related(scene: Scene, objects: list[tuple[Thing, float, float, float, float]]) -> bool:
    """Whether every object of the second group lies where the relation says, clear of the diagonal."""
    if scene.relation is None:
        return True
    first = [item for item in objects if item[0] == scene.groups[0][0]]
    second = [item for item in objects if item[0] == scene.groups[1][0]]
    across, down = RELATIONS[scene.relation]
    for one in first:
        for other in second:
            dx, dy = other[1] - one[1], other[2] - one[2]
            along, aside = dx * across + dy * down, abs(dx * down) + abs(dy * across)
            if along < 1.5 * aside or along <= 0:
                return False
    return True


def outline(shape: str, turn: float) -> np.ndarray:
    """Corners of a shape with the area of the unit circle, float64 [n, 2]; `turn` in degrees."""
    import numpy as np

    if shape == "star":
        angles = np.arange(10) * math.pi / 5 - math.pi / 2
        corner = math.sqrt(math.pi / (10 * _STAR_INNER / 2 * math.sin(math.pi / 5)))
        reach = np.where(np.arange(10) % 2, _STAR_INNER, 1.0) * corner
    else:
        sides = {"triangle": 3, "square": 4, "circle": 48}[shape]
        start = {"triangle": -math.pi / 2, "square": -math.pi / 4, "circle": 0.0}[shape]
        angles = np.arange(sides) * 2 * math.pi / sides + start
        reach = np.full(sides, math.sqrt(2 * math.pi / (sides * math.sin(2 * math.pi / sides))))
    angles = angles + math.radians(turn)
    return np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)


def drawn(ground: np.ndarray, layout: Layout, when: float) -> np.ndarray:
    """The ground (float32 RGB [H, W, 3], 0 to 255) with the objects at `when` (0 to 1 of the way), edges smooth."""
    import cv2
    import numpy as np

    short = min(ground.shape[:2])
    picture = ground.copy()
    grown = _peak(layout.growth) * math.sqrt((1 + (layout.growth - 1) * when) / layout.growth)
    for thing, x, y, radius, turn in layout.objects:
        centre = np.array([x + layout.travel[0] * (when - 0.5), y + layout.travel[1] * (when - 0.5)])
        corners = (outline(thing.shape, turn) * radius * grown + centre) * short - 0.5
        mask = np.zeros(ground.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint(corners * 64).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=6)
        share = (mask.astype(np.float32) / 255)[..., None]
        picture += share * (np.array(COLOURS[thing.colour], np.float32) - picture)
    return picture


def ground(rng: np.random.Generator, background: str, height: int, width: int, texture: float = 3.0) -> np.ndarray:
    """A plain background with a soft texture of grey (levels of 255), float32 RGB [H, W, 3]."""
    import cv2
    import numpy as np

    coarse = rng.normal(0, 1, (max(2, height // 12), max(2, width // 12))).astype(np.float32)
    soft = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * texture
    return np.array(BACKGROUNDS[background], np.float32) + soft[..., None]


def sensed(rng: np.random.Generator, picture: np.ndarray, noise: float = 1.5) -> np.ndarray:
    """The picture as a sensor sees it: white noise of brightness (levels of 255), rounded to uint8."""
    import numpy as np

    grain = rng.standard_normal(picture.shape[:2], dtype=np.float32) * noise
    return (picture + grain[..., None] + 0.5).clip(0, 255).astype(np.uint8)
