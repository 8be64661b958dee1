"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): are the things there, as many, of that colour, on that side?

The rules are those of djghosh13/geneval@af4902f2, evaluation/evaluate_images.py and summary_scores.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from infra.types import UserError
from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""What a judge may call a colour."""

_Object = Mapping[str, Any]
_LEAST_OFFSET = 1e-3
"""Pixels; objects nearer than this, margin taken off, are on no side of each other."""
_DIRECTION = 0.5
"""A side counts where its part of the unit offset is above this."""


@dataclass(frozen=True, kw_only=True)
class GenEval(Suite):
    """Six tasks over 553 prompts, four pictures each; `overall` is the mean of the tasks, not of the pictures.

    A picture is right where every `include` clause holds and no `exclude` does:

        include   count of the surest objects of the class are there, each of the colour; every one of them is on the
                  side of every one that an earlier clause matched: the offset of the centres, less margin times the sum
                  of both sizes, has a part above 0.5 of the length of the whole offset in that direction
        exclude   the class is there count times or more

    The judge names a colour of each object; the published one is CLIP ViT-L/14 over COLOURS on the crop, with what the
    mask leaves out in grey. The published detector is Mask2Former Swin-S (COCO), no suppression of overlaps.
    """

    name: ClassVar[str] = "geneval"
    evidence: ClassVar[Evidence] = "objects"
    main: ClassVar[str] = "overall"

    threshold: float = 0.3
    """Objects must be surer than this,"""
    counting_threshold: float = 0.9
    """and in the task of counting than this."""
    max_objects: int = 16
    """Most objects of a class, the surest."""
    margin: float = 0.1
    """Share of both sizes that an offset must exceed."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """Lines of evaluation_metadata.jsonl (tag, prompt, include, exclude), whoever worded the prompts."""
        if not prompts:
            raise UserError("geneval has no prompts of its own: give evaluation_metadata.jsonl of djghosh13/geneval")
        for number, line in enumerate(prompts.decode().splitlines(), 1):
            if not line.strip():
                continue
            try:
                told = json.loads(line)
                about = {"include": told["include"], "exclude": told.get("exclude", [])}
                question = Question(prompt=told["prompt"], task=told["tag"], about=about)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"line {number} of geneval's prompts is {line[:60]!r}: give tag, prompt and include as JSON"
                ) from error
            if question.task not in TASKS:
                raise UserError(f"line {number} has the tag {question.task!r}: geneval knows {', '.join(TASKS)}")
            yield question

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """1 where the picture is right, else 0 and the reasons."""
        found = self._kept(question.task, evidence["objects"])
        reasons: list[str] = []
        matched: list[Sequence[_Object] | None] = []
        for clause in question.about["include"]:
            objects = found.get(clause["class"], [])[: clause["count"]]
            wrong = self._wrong(clause, objects, matched)
            matched.append(None if wrong else objects)
            reasons += [wrong] if wrong else []
        for clause in question.about["exclude"]:
            if (num := len(found.get(clause["class"], []))) >= clause["count"]:
                reasons.append(f"expected {clause['class']}<{clause['count']}, found {num}")
        return Verdict(score=float(not reasons), parts={"reasons": reasons})

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Share of right pictures by task, and their mean; no `overall` while a task is missing."""
        right: dict[str, list[float]] = {}
        for one in judged:
            right.setdefault(one.task, []).append(one.verdict.score)
        shares = {task: math.fsum(right[task]) / len(right[task]) for task in TASKS if task in right}
        return shares | ({"overall": math.fsum(shares.values()) / len(TASKS)} if len(shares) == len(TASKS) else {})

    def _kept(self, task: str, objects: Sequence[_Object]) -> dict[str, list[_Object]]:
        """Sure objects by class, the surest first."""
        threshold = self.counting_threshold if task == "counting" else self.threshold
        found: dict[str, list[_Object]] = {}
        for one in sorted(objects, key=lambda one: -one["score"]):
            same = found.setdefault(one["name"], [])
            if one["score"] > threshold and len(same) < self.max_objects:
                same.append(one)
        return found

    def _wrong(
        self, clause: Mapping[str, Any], objects: Sequence[_Object], matched: Sequence[Sequence[_Object] | None]
    ) -> str:
        """Why an include clause does not hold; empty where it does."""
        name, count = clause["class"], clause["count"]
        if len(objects) < count:
            return f"expected {name}>={count}, found {len(objects)}"
        if colour := clause.get("color"):
            seen = [one.get("colour") for one in objects]
            if seen.count(colour) < count:
                return f"expected {colour} {name}>={count}, found {', '.join(map(str, seen))}"
        if "position" not in clause:
            return ""
        side, group = clause["position"]
        if (targets := matched[group]) is None:
            return f"no target for {name} to be {side}"
        for one in objects:
            for target in targets:
                if side not in (sides := self._sides(one["box"], target["box"])):
                    return f"expected {name} {side} target, found {' and '.join(sorted(sides)) or 'neither side of'} it"
        return ""

    def _sides(self, box: Sequence[float], target: Sequence[float]) -> set[str]:
        """On which sides of the target a box lies."""
        offsets = [(box[i] + box[i + 2] - target[i] - target[i + 2]) / 2 for i in (0, 1)]
        sizes = [abs(box[i + 2] - box[i]) + abs(target[i + 2] - target[i]) for i in (0, 1)]
        kept = [
            math.copysign(max(abs(offset) - self.margin * size, 0), offset)
            for offset, size in zip(offsets, sizes, strict=True)
        ]
        if all(abs(part) < _LEAST_OFFSET for part in kept):
            return set()
        x, y = (part / math.hypot(*offsets) for part in kept)
        told = {
            "left of": x < -_DIRECTION,
            "right of": x > _DIRECTION,
            "above": y < -_DIRECTION,
            "below": y > _DIRECTION,
        }
        return {side for side, holds in told.items() if holds}
