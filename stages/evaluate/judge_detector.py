"""Objects by a detector of transformers, their colours by CLIP; both from folders, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.types import BadRow, UserError
from models.weights import pretrained
from stages import weights
from stages.evaluate.judge import Answer
from stages.evaluate.suite import Evidence, Question
from stages.evaluate.suite_geneval import COLOURS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

REVISION = 1
"""Bumped when the same weights find something else in the same picture."""
ALSO_CALLED: Mapping[str, str] = {"computer keyboard": "keyboard", "computer mouse": "mouse", "tv remote": "remote"}
"""GenEval's own words for three of COCO's classes: where a detector has not the one, it may have the other."""
COLOUR_PROMPTS = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
"""A colour is the mean of these, as in djghosh13/geneval@af4902f2, evaluation/evaluate_images.py."""
_LEAST_SCORE = 0.05
"""Less sure detections are no evidence: GenEval asks for 0.3 and more."""
_CROPS_AT_ONCE = 16
_DIGITS = 4
_LEAST_SIDE = 4
"""Pixels."""


class Detector:
    """What an object detector sees in a picture, of films in the frame in the middle.

    Any model of AutoModelForObjectDetection whose processor has `post_process_object_detection` (DETR, RT-DETR, YOLOS).
    Its classes are named by its config's `id2label`; an answer about a thing that it has no word for is a BadRow, since
    a detector that cannot see a thing says nothing about a picture of it.

    Colours are asked for as GenEval does, of the classes whose clause names a colour: the crop goes through CLIP, and
    the colour is the one of COLOURS whose prompts (COLOUR_PROMPTS; their unit embeddings averaged, and scaled to unit
    length) have the largest cosine with it. GenEval cuts the thing out by its mask first and greys (#999) what is
    around it. These detectors give boxes alone, so the ground in the box is seen as well: the name says "boxes", and
    such scores stand beside none that were made with masks.
    """

    gives: Evidence = "objects"

    def __init__(self, detector: str, clip: str | None = None) -> None:
        library = weights.transformers()
        self._device = weights.device()
        with told("detector", detector):
            self._model = pretrained(library.AutoModelForObjectDetection, detector).to(self._device).eval()
            self._prepare = pretrained(library.AutoImageProcessor, detector)
        if not hasattr(self._prepare, "post_process_object_detection"):
            raise UserError(f"the model at {detector} tells no boxes: give verdicts.detector=DIR of a DETR or a YOLOS")
        self._place = clip
        self._colours: dict[str, NDArray[np.float32]] = {}
        self._names = {int(at): str(name) for at, name in self._model.config.id2label.items()}
        self.name = f"detector@{REVISION}-{named_weights(detector, 'detector')}-boxes"
        if clip is not None:
            self.name += f"-clip-{named_weights(clip, 'clip')}"

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """Objects, the surest first; picture by picture, since padding to a common size would move boxes."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        calls = {name: self._called(name) for name in _asked_for(answer.question)}
        if unknown := sorted(name for name, called in calls.items() if called is None):
            return BadRow(f"The detector has no word for {unknown[0]!r}: it knows {len(self._names)} others.")
        try:
            picture = answer.picture()
        except BadRow as bad:
            return bad
        own = {called: name for name, called in calls.items()}
        objects = [one | {"name": own.get(one["name"], one["name"])} for one in self._objects(picture)]
        for name in sorted(_coloured(answer.question)):
            alike = [one for one in objects if one["name"] == name]
            for one, colour in zip(alike, self._colour_of(picture, name, alike), strict=True):
                one["colour"] = colour
        height, width = picture.shape[:2]
        return {"objects": objects, "size": [width, height]}

    def _called(self, name: str) -> str | None:
        """The detector's word for a thing."""
        known = set(self._names.values())
        return next((one for one in (name, ALSO_CALLED.get(name)) if one in known), None)

    def _objects(self, picture: Picture) -> list[dict[str, Any]]:
        """Boxes in pixels of the picture, cut off at its edges; those of no extent are left out."""
        import torch
        from PIL import Image

        height, width = picture.shape[:2]
        with torch.inference_mode():
            given = self._prepare(images=[Image.fromarray(picture)], return_tensors="pt").to(self._device)
            found = self._model(**given)
        size = torch.tensor([[height, width]], device=self._device)
        (told,) = self._prepare.post_process_object_detection(found, threshold=_LEAST_SCORE, target_sizes=size)
        objects: list[dict[str, Any]] = []
        for score, label, corners in zip(told["scores"], told["labels"], told["boxes"], strict=True):
            ends = zip(corners.tolist(), (width, height, width, height), strict=True)
            box = [round(min(max(at, 0.0), float(most)), 2) for at, most in ends]
            if box[2] > box[0] and box[3] > box[1] and int(label) in self._names:
                sure = round(float(score), _DIGITS)
                objects.append({"name": self._names[int(label)], "colour": None, "box": box, "score": sure})
        return sorted(objects, key=lambda one: (-one["score"], one["name"], one["box"]))

    def _colour_of(self, picture: Picture, name: str, objects: Sequence[Mapping[str, Any]]) -> list[str]:
        """The likeliest colour of each."""
        if not objects:
            return []
        if name not in self._colours:
            self._colours[name] = self._described(name)
        found: list[str] = []
        for start in range(0, len(objects), _CROPS_AT_ONCE):
            crops = [_crop(picture, one["box"]) for one in objects[start : start + _CROPS_AT_ONCE]]
            likely = self._clip.embedded(crops) @ self._colours[name].T
            found += [COLOURS[at] for at in likely.argmax(axis=1)]
        return found

    def _described(self, name: str) -> NDArray[np.float32]:
        """Each colour of a thing as CLIP reads of it: unit vectors [10, D]."""
        import numpy as np

        said = [text.format(colour=colour, name=name) for colour in COLOURS for text in COLOUR_PROMPTS]
        means = self._clip.texts(said).reshape(len(COLOURS), len(COLOUR_PROMPTS), -1).mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    @cached_property
    def _clip(self) -> Any:
        from stages.clip_model import Clip

        if self._place is None:
            raise UserError("these prompts ask for colours, which CLIP tells: give verdicts.clip=DIR as well")
        with told("clip", self._place):
            return Clip(self._place)


def digest(place: str, setting: str) -> str:
    """Names the weights in a folder by what they hold; a name on a hub is refused."""
    if not (Path(place).expanduser() / "config.json").is_file():
        raise UserError(f"verdicts.{setting}={place} is no folder of a model: give one that holds its config.json")
    return weights.named(place)


def named_weights(place: str, setting: str) -> str:
    """The beginning of the digest, for the judge's name."""
    return digest(place, setting).removeprefix("sha256:")[:8]


@contextmanager
def told(setting: str, place: str) -> Generator[None]:
    """What stands in the way of loading a folder, as one sentence."""
    digest(place, setting)
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:120].rstrip(".")
        raise UserError(
            f"verdicts.{setting}={place} cannot be loaded ({why}): give a folder that transformers wrote"
        ) from error


def _asked_for(question: Question) -> set[str]:
    """Things that a question is about, in the suite's words."""
    clauses = [*question.about.get("include", ()), *question.about.get("exclude", ())]
    return {clause["class"] for clause in clauses} | set(question.about.get("things", ()))


def _coloured(question: Question) -> set[str]:
    return {clause["class"] for clause in question.about.get("include", ()) if clause.get("color")}


def _crop(picture: Picture, box: Sequence[float]) -> Picture:
    """The part of a picture in a box; so wide and high at least that its colours cannot be taken for a side."""
    rows, columns = (_span(box[at], box[at + 2], picture.shape[1 - at]) for at in (1, 0))
    return picture[rows, columns]


def _span(low: float, high: float, length: int) -> slice:
    start = max(0, min(round(low), length - _LEAST_SIDE))
    return slice(start, max(round(high), start + _LEAST_SIDE))
