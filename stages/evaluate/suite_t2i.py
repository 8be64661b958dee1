"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350): attributes by questions, places by detections.

The rules are those of Karine-Huang/T2I-CompBench@1b709499: BLIPvqa_eval/BLIP_vqa.py, UniDet_eval/2D_spatial_eval.py and
3_in_1_eval/3_in_1.py. They find phrases by spaCy; here they are split by words, or given with the prompts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from infra.types import BadRow, UserError
from stages.evaluate.judge import said_yes
from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

LOCALITIES = (
    "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of",
)  # fmt: skip
_BESIDE = LOCALITIES[:3]
_DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "on the left of": (0, 1), "on the right of": (0, -1), "on the top of": (1, 1), "on the bottom of": (1, -1),
}  # fmt: skip
"""Axis (0 is x) and sign of the way from the first thing to the second; y goes down."""
_PERSONS = ("girl", "boy", "man", "woman")
"""What a detector calls a person."""
_MOST_OVERLAP = 0.1
_LEAST_SCORE = 0.5
_Box = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Attributes(Suite):
    """color, shape and texture: the product over noun phrases of how likely a VQA model says yes to "a green bench?".

    Published: BLIP-VQA, 300 prompts a category, ten pictures each. Without likelihoods a yes is 1 and all else 0, which
    is another measure: the judge's name tells.
    """

    name: ClassVar[str] = "t2i_attributes"
    evidence: ClassVar[Evidence] = "answers"
    main: ClassVar[str] = "attributes"

    category: Literal["color", "shape", "texture"] = "color"
    """Which of them the prompts are of."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """One prompt a line, phrases split at "and"; or JSON lines of prompt and phrases, for prompts of another build
        (a text line without "and" is asked about as a whole)."""
        for number, prompt, told in _prompts(prompts, self.name):
            phrases = told.get("phrases") or [part.strip(" .") for part in re.split(r"\band\b", prompt)]
            if not all(phrases):
                raise UserError(f"line {number} of {self.name} has an empty phrase: give prompt and phrases as JSON")
            yield Question(prompt=prompt, task=self.category, about={"questions": [f"{phrase}?" for phrase in phrases]})

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """The product of the likelihoods of a yes."""
        likely = evidence.get("yes") or [float(said_yes(answer)) for answer in evidence["answers"]]
        if len(likely) != len(question.about["questions"]):
            raise BadRow(f"The judge gave {len(likely)} answers to {len(question.about['questions'])} questions.")
        return Verdict(score=math.prod(likely), parts={"yes": list(likely)})

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Mean over pictures."""
        return _mean(judged, self.main, self.category)


@dataclass(frozen=True, kw_only=True)
class Spatial(Suite):
    """2-D places: a quarter of each thing's detection score, and half of how well they lie; under 0.5 it is 0.

    The second thing lies in the direction where the offset of the centres is longest; where the boxes overlap by more
    than 0.1 (intersection over union), 0.1 over that. Beside: within 150 pixels on one axis, else 150 over the longer
    offset. Pixels are those of the picture: published at a side of 512.
    """

    name: ClassVar[str] = "t2i_spatial"
    evidence: ClassVar[Evidence] = "objects"
    main: ClassVar[str] = "spatial"

    near: float = 150.0
    """Pixels."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """One prompt a line, "a girl on the top of a frog": a thing is the last word of its side; or JSON lines of
        prompt, locality and things (two)."""
        for number, prompt, told in _prompts(prompts, self.name):
            locality = told.get("locality") or next((one for one in LOCALITIES if one in prompt), None)
            if locality is None:
                raise UserError(f"line {number} of {self.name} says no place: use one of {', '.join(LOCALITIES)}")
            sides = [part.split() for part in prompt.strip(" .").lower().split(locality, 1)]
            things = told.get("things") or [side[-1] for side in sides if side]
            if len(things) != 2:
                raise UserError(f"line {number} of {self.name} names no two things: give prompt and things as JSON")
            names = ["person" if thing in _PERSONS else thing for thing in things]
            yield Question(prompt=prompt, task="spatial", about={"locality": locality, "things": names})

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Of the surest detection of each thing."""
        objects = sorted(evidence["objects"], key=lambda one: -one["score"])
        found = [next((one for one in objects if one["name"] == name), None) for name in question.about["things"]]
        place = 0.0
        if found[0] and found[1]:
            place = self._place(question.about["locality"], found[0]["box"], found[1]["box"])
        score = sum(0.25 * one["score"] for one in found if one) + place / 2
        return Verdict(
            score=score if score >= _LEAST_SCORE else 0.0, parts={"place": place, "found": sum(map(bool, found))}
        )

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Mean over pictures."""
        return _mean(judged, self.main)

    def _place(self, locality: str, first: _Box, second: _Box) -> float:
        """How well the boxes lie, 0 to 1."""
        offset = [(second[i] + second[i + 2] - first[i] - first[i + 2]) / 2 for i in (0, 1)]
        if locality in _BESIDE:
            close = min(map(abs, offset)) < self.near
            return 1.0 if close else self.near / max(map(abs, offset))
        if locality not in _DIRECTIONS:
            return 0.0
        axis, sign = _DIRECTIONS[locality]
        if offset[axis] * sign <= 0 or abs(offset[axis]) <= abs(offset[1 - axis]):
            return 0.0
        overlap = _overlap(first, second)
        return 1.0 if overlap < _MOST_OVERLAP else _MOST_OVERLAP / overlap


def complex_score(attribute: float, spatial: float | None = None, action: float | None = None) -> float:
    """Of a picture of a prompt of the complex category: the mean of its attributes and of what it asks for beside them
    (place, action by CLIP); None what it does not ask for."""
    parts = [attribute, *(part for part in (spatial, action) if part is not None)]
    return math.fsum(parts) / len(parts)


def _overlap(one: _Box, other: _Box) -> float:
    """Intersection over union."""
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union else 0.0


def _mean(judged: Sequence[Judged], *names: str) -> dict[str, float]:
    if not judged:
        return {}
    return dict.fromkeys(names, math.fsum(one.verdict.score for one in judged) / len(judged))


def _prompts(prompts: bytes | None, suite: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Number, prompt and what is told beside it, of lines of text or JSON."""
    if not prompts:
        raise UserError(f"{suite} has no prompts of its own: give one of examples/dataset/*_val.txt of T2I-CompBench")
    for number, line in enumerate(prompts.decode().splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line) if line.lstrip().startswith("{") else {"prompt": line.strip()}
            yield number, told["prompt"], told
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"line {number} of {suite} cannot be read: give a prompt, or JSON with prompt") from error
