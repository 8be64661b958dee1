"""GenEval's six tasks in the little world of the sample corpus, so that they can be asked of models of minutes.

GenEval (arXiv 2310.11513, djghosh13/geneval@af4902f2) asks for photographs of COCO's things, and a detector judges
whether what was asked for is there. Here the things are the world's shapes, and the prompts are whole sentences of its
captions ("a small red circle above a large blue star on a grey background"): a small model knows no others. Each task
still verifies its own claim alone, so that their figures tell apart what is learnt. Not a stage.

    single        the shape is there                                4 claims
    two           both shapes are there                             6
    counting      two or three of the shape, neither more nor fewer 8
    colours       the shape is there in its colour                  24, of which 3 are held back from the corpus
    position      both, the first where the relation says           48, of which 8 (4 said either way) are held back
    attribution   both, each in its colour                          180, of which 41 have a held pair
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stages import sample_world as world
from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

if TYPE_CHECKING:
    Clause = Mapping[str, Any]
    Seen = Mapping[str, Any]
    _Groups = tuple[tuple[world.Thing, int], ...]

TASKS = ("single", "two", "counting", "colours", "position", "attribution")
"""As GenEval lists them."""
HELD = "_held"
"""Ends the name of a task's questions about combinations that are in no file of the corpus."""
WITH_HELD = ("colours", "position", "attribution")
COUNTS = (2, 3)
_TRIES = 5
"""Scenes drawn for a prompt, at most: `colours_held` has fewer sentences than may be asked for."""
_CLEAR = 0.1
"""Share of both sizes, summed, by which centres must differ to count as apart (GenEval)."""
_ALONG = 0.5
"""Least part of the way between centres that goes along a relation (GenEval)."""


@dataclass(frozen=True, kw_only=True)
class Composition(Suite):
    """Asks for what the captions say, shown and held combinations apart; a verdict is 1 or 0.

    composition/TASK          share of the answers that keep to the claim, over combinations that the corpus shows
    composition/TASK_held     the same, over those that it never shows (colours, position, attribution)
    composition/TASK_chance, composition/TASK_held_chance
                              the same claims, held to answers to *other* prompts of the task, shown and held:
                              what a model reaches that draws as well and does not listen
    composition/overall       mean over the six tasks, shown combinations (GenEval's mean)
    composition/held          mean over the three held ones
    """

    name: ClassVar[str] = "composition"
    evidence: ClassVar[Evidence] = "objects"
    main: ClassVar[str] = "composition/overall"

    prompts_per_task: int = 60
    """Most of each task, and of each task's held combinations: at 60 all but `colours_held`, which has 24 sentences,
    and 504 in all (GenEval has 553)."""
    seed: int = 0
    """Of the prompts."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """Every task's prompts, no sentence twice, its held ones behind; it has no file of prompts."""
        for task, scene in self.scenes():
            yield Question(prompt=scene.caption(moving=False), task=task, about=_claim(scene, task.removesuffix(HELD)))

    def scenes(self) -> Iterator[tuple[str, world.Scene]]:
        """What the prompts tell of, with their tasks: drawn and judged, the best that any model can reach."""
        for task in (*TASKS, *(name + HELD for name in WITH_HELD)):
            rng = np.random.default_rng([self.seed, *task.encode()])
            scenes: dict[str, world.Scene] = {}
            for _ in range(_TRIES * self.prompts_per_task):
                scene = _scene(rng, task)
                scenes.setdefault(scene.caption(moving=False), scene)
                if len(scenes) == self.prompts_per_task:
                    break
            yield from ((task, scene) for scene in scenes.values())

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """1 where the claim holds; in `parts` why not, and what chance needs: the claim, and what was seen."""
        why = broken(question.about, evidence)
        parts = {"why": why, "claim": question.about, "seen": evidence}
        return Verdict(score=float(not why), parts=parts)

    def settled(self, judged: Sequence[Judged]) -> Sequence[Judged]:
        """Each claim's chance beside it: it asks all answers of the task, which is too slow for every draw."""
        found: list[Judged] = []
        for task in dict.fromkeys(one.task.removesuffix(HELD) for one in judged):
            alike = [one for one in judged if one.task.removesuffix(HELD) == task]
            for one in alike:
                parts = {**one.verdict.parts, "chance": chance(one, alike)}
                found.append(replace(one, verdict=replace(one.verdict, parts=parts)))
        return found

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Shares of right answers, and chance beside each; of settled verdicts."""
        found: dict[str, float] = {}
        for task in (*TASKS, *(one + HELD for one in WITH_HELD)):
            own = [one.verdict for one in judged if one.task == task]
            if own:
                found[f"{self.name}/{task}"] = float(np.mean([one.score for one in own]))
                known = [one.parts["chance"] for one in own if one.parts["chance"] is not None]
                found[f"{self.name}/{task}_chance"] = float(np.mean(known)) if known else float("nan")
        for total, tasks in (("overall", TASKS), ("held", tuple(name + HELD for name in WITH_HELD))):
            parts = [found[f"{self.name}/{task}"] for task in tasks if f"{self.name}/{task}" in found]
            if len(parts) == len(tasks):
                found[f"{self.name}/{total}"] = float(np.mean(parts))
        return found


def chance(claim: Judged, answers: Sequence[Judged]) -> float | None:
    """Share of the answers to other prompts in which the claim holds; None where there are none.

    Its mean over the claims is the permutation's mean, in closed form. It knows how well the model draws and how its
    answers are spread: an empty picture has chance 0, a model that draws the task's pictures perfectly and in any order
    the share of like claims.
    """
    others = [one.verdict.parts["seen"] for one in answers if one.question != claim.question]
    if not others:
        return None
    return sum(not broken(claim.verdict.parts["claim"], seen) for seen in others) / len(others)


def broken(claim: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """The first clause that does not hold, in words; empty where all do.

    `include`: at least `count` objects of the name (in the colour, where it has one), of which the surest `count` must
    stand to those of the clause numbered `to` as `relation` says. `exclude`: fewer than `count`. So GenEval has it.
    """
    matched: list[list[Seen]] = []
    for clause in claim["include"]:
        found = _matching(clause, seen)[: clause["count"]]
        if len(found) < clause["count"]:
            return f"{len(found)} of {clause['count']} {clause.get('colour', '')} {clause['name']}".replace("  ", " ")
        if "relation" in clause:
            targets = matched[clause["to"]]
            if not all(clause["relation"] in relations(one, other) for one in found for other in targets):
                return f"{clause['name']} not {clause['relation']} {claim['include'][clause['to']]['name']}"
        matched.append(found)
    for clause in claim.get("exclude", ()):
        if len(_matching(clause, seen)) >= clause["count"]:
            return f"{clause['count']} or more {clause['name']}"
    return ""


def relations(one: Seen, other: Seen) -> set[str]:
    """Where the first object lies, seen from the other, by GenEval's rule.

    The way between the centres, less a tenth of both sizes, summed, on either axis; a relation holds where more than
    half of its length goes its way. On a diagonal two hold, on top of each other none.
    """
    (x0, y0, x1, y1), (u0, v0, u1, v1) = one["box"], other["box"]
    way = np.array([x0 + x1 - u0 - u1, y0 + y1 - v0 - v1]) / 2
    clear = _CLEAR * np.array([x1 - x0 + u1 - u0, y1 - y0 + v1 - v0])
    way = np.maximum(np.abs(way) - clear, 0) * np.sign(way)
    if not way.any():
        return set()
    along, down = way / np.linalg.norm(way)
    # RELATIONS steps from the first to the second: the first lies the other way.
    return {name for name, (x, y) in world.RELATIONS.items() if -(x * along + y * down) > _ALONG}


def _matching(clause: Clause, seen: Seen) -> list[Seen]:
    colour = clause.get("colour")
    return [one for one in seen["objects"] if one["name"] == clause["name"] and colour in (None, one["colour"])]


def _claim(scene: world.Scene, task: str) -> dict[str, Any]:
    """What of the scene the task verifies."""
    clauses: list[dict[str, Any]] = [{"name": thing.shape, "count": count} for thing, count in scene.groups]
    if task in ("colours", "attribution"):
        for clause, (thing, _) in zip(clauses, scene.groups, strict=True):
            clause["colour"] = thing.colour
    if task == "position":
        clauses = [clauses[1], clauses[0] | {"relation": scene.relation, "to": 0}]
    claim: dict[str, Any] = {"include": clauses}
    if task == "counting":
        claim["exclude"] = [{"name": one["name"], "count": one["count"] + 1} for one in clauses]
    return claim


def _scene(rng: np.random.Generator, task: str) -> world.Scene:
    """A scene of the corpus's grammar for a task, shown or held."""
    plain, held = task.removesuffix(HELD), task.endswith(HELD)
    while True:
        ground = str(rng.choice(list(world.BACKGROUNDS)))
        groups, relation = (_alone if plain in ("single", "counting", "colours") else _together)(rng, plain, held)
        scene = world.Scene(groups, relation, ground, "still")
        if groups and (_one_thing_held(scene, plain) if held else world.allowed(scene)):
            return scene


def _one_thing_held(scene: world.Scene, task: str) -> bool:
    """Whether the scene has what the task holds back, and nothing else that the corpus never shows."""
    pairs_shown = world.allowed(replace(scene, relation=None))
    if task == "position":
        return pairs_shown and not world.allowed(scene)
    # Red is held back with no shape: what is not allowed then is the relation.
    red = tuple((replace(thing, colour="red"), count) for thing, count in scene.groups)
    return not pairs_shown and world.allowed(replace(scene, groups=red))


def _thing(rng: np.random.Generator) -> world.Thing:
    words = (world.SHAPES, tuple(world.COLOURS), tuple(world.SIZES))
    return world.Thing(*(str(rng.choice(each)) for each in words))


def _alone(rng: np.random.Generator, task: str, held: bool) -> tuple[_Groups, str | None]:
    thing = _thing(rng)
    if held:
        shape, colour = world.HELD_PAIRS[int(rng.integers(len(world.HELD_PAIRS)))]
        thing = replace(thing, shape=shape, colour=colour)
    if task == "counting":  # the corpus counts small things only
        return ((replace(thing, size="small"), int(rng.choice(COUNTS))),), None
    return ((thing, 1),), None


def _together(rng: np.random.Generator, task: str, held: bool) -> tuple[_Groups, str | None]:
    """Two things of different shapes, in the order in which captions name them; none where two have no place."""
    one, other, relation = _thing(rng), _thing(rng), str(rng.choice(list(world.RELATIONS)))
    if held and task == "position":
        shape, relation, to = world.HELD_RELATIONS[int(rng.integers(len(world.HELD_RELATIONS)))]
        one, other = replace(one, shape=shape), replace(other, shape=to)
    if one.shape == other.shape or one.size == other.size == "large":
        return (), None
    if one.rank() > other.rank():
        one, other, relation = other, one, world.INVERSE[relation]
    return ((one, 1), (other, 1)), relation
