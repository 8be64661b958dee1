"""The composition suite: its prompts, GenEval's clauses on hand-made detections, and the detector against truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from stages import sample_world as world
from stages.evaluate import suite_composition as composition
from stages.evaluate.detector_pixels import OTHER, detected
from stages.evaluate.suite import Judged, Question
from stages.evaluate.suite_composition import Composition, broken, relations

Spoil = Callable[[np.ndarray], np.ndarray]


def seen(*objects: tuple[str, str, float, float]) -> dict:
    """Evidence with objects of 10 pixels at (x, y), the surest first."""
    return {
        "objects": [
            {"name": name, "colour": colour, "box": [x - 5, y - 5, x + 5, y + 5], "score": 1 - n / 100}
            for n, (name, colour, x, y) in enumerate(objects)
        ],
        "size": [64, 64],
    }


def judged(suite: Composition, question: Question, evidence: dict, index: int = 0) -> Judged:
    verdict = suite.verdict(question, evidence)
    return Judged(question=question.prompt, task=question.task, index=index, verdict=verdict)


def drawn(scene: world.Scene, seed: int, side: int = 64) -> np.ndarray:
    rng, layout = np.random.default_rng(seed), None
    while layout is None:
        layout = world.laid_out(rng, scene, 1, 1)
    picture = world.sensed(rng, world.drawn(world.ground(rng, scene.background, 128, 128), layout, 0.5))
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def test_prompts_are_sentences_of_the_corpus_and_held_ones_hold_back_one_thing() -> None:
    suite = Composition(prompts_per_task=40)
    questions = list(suite.questions(None))
    assert questions == list(suite.questions(None))
    assert questions != list(Composition(prompts_per_task=40, seed=1).questions(None))
    counts = Counter(question.task for question in questions)
    assert counts == dict.fromkeys(composition.TASKS, 40) | {
        "colours_held": 24,
        "position_held": 40,
        "attribution_held": 40,
    }
    assert max(Counter((q.task, q.prompt) for q in questions).values()) == 1
    for question in questions:
        words = question.prompt.removesuffix("s").replace("s on", " on").split()
        pairs = [(shape, words[n - 1]) for n, shape in enumerate(words) if shape in world.SHAPES]
        held = [pair for pair in pairs if pair in world.HELD_PAIRS]
        assert bool(held) == (question.task in ("colours_held", "attribution_held")), question.prompt
        if question.task == "position_held":
            clauses = question.about["include"]
            way = (clauses[1]["name"], clauses[1]["relation"], clauses[0]["name"])
            assert way in world.HELD_RELATIONS or (way[2], world.INVERSE[way[1]], way[0]) in world.HELD_RELATIONS


def test_clauses_hold_as_in_geneval() -> None:
    star = {"name": "star", "count": 1}
    assert not broken({"include": [star]}, seen(("circle", "red", 9, 9), ("star", "blue", 40, 9)))
    assert broken({"include": [star]}, seen((OTHER, "red", 9, 9))) == "0 of 1 star"
    blue = {"include": [star | {"colour": "blue"}]}
    assert not broken(blue, seen(("star", "blue", 9, 9)))
    assert broken(blue, seen(("star", "red", 9, 9), ("circle", "blue", 40, 9))) == "0 of 1 blue star"
    two = {"include": [star | {"count": 2}], "exclude": [star | {"count": 3}]}
    stars = [("star", "red", 9.0 + 20 * n, 9.0) for n in range(3)]
    assert [not broken(two, seen(*stars[:count])) for count in range(4)] == [False, False, True, False]
    above = {"include": [{"name": "circle", "count": 1}, star | {"relation": "above", "to": 0}]}
    assert not broken(above, seen(("star", "red", 30, 9), ("circle", "red", 30, 40)))
    assert broken(above, seen(("circle", "red", 30, 9), ("star", "red", 30, 40))) == "star not above circle"


def test_relations_are_genevals() -> None:
    """On the diagonal both hold; within a tenth of both sizes neither does."""
    at = seen(("a", "", 30, 30), ("b", "", 50, 30), ("c", "", 50, 50), ("d", "", 31, 31))["objects"]
    assert relations(at[0], at[1]) == {"to the left of"} and relations(at[1], at[0]) == {"to the right of"}
    assert relations(at[2], at[1]) == {"below"} and relations(at[1], at[2]) == {"above"}
    assert relations(at[0], at[2]) == {"to the left of", "above"} and relations(at[0], at[3]) == set()


def test_scores_are_shares_and_chance_is_the_mean_over_all_permutations() -> None:
    suite = Composition(prompts_per_task=6)
    questions = [question for question in suite.questions(None) if question.task.startswith("colours")]
    perfect = [judged(suite, q, seen(*((c["name"], c["colour"], 9, 9) for c in q.about["include"]))) for q in questions]
    found = suite.scores(suite.settled(perfect))
    assert found["composition/colours"] == found["composition/colours_held"] == 1
    for split in ("colours", "colours_held"):
        own = [q for q in questions if q.task == split]
        like = [a.about == b.about for a in own for b in questions if a is not b]
        assert found[f"composition/{split}_chance"] == pytest.approx(np.mean(like))
    assert suite.scores(suite.settled(perfect[::-1])) == pytest.approx(found)
    blank = [judged(suite, q, seen()) for q in questions]
    assert set(suite.scores(suite.settled(blank)).values()) == {0.0}
    everything = [judged(suite, q, seen(("star", "blue", 9, 9))) for q in suite.questions(None)]
    whole = suite.scores(suite.settled(everything))
    assert {"composition/overall", "composition/held"} < set(whole) and len(whole) == 2 * 9 + 2


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        (lambda p: p, 0.99),
        (lambda p: (p + np.random.default_rng(0).normal(0, 12, p.shape)).clip(0, 255).astype(np.uint8), 0.99),
        (lambda p: cv2.GaussianBlur(p, (0, 0), 1.2), 0.99),
        (lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], 1), 0.95),
    ],
    ids=["plain", "noise", "blur", "jpeg"],
)
def test_the_detector_finds_what_was_drawn(spoil: Spoil, least: float) -> None:
    """On pictures of 64 pixels, every task: truth is what the world was told to draw."""
    suite, right = Composition(prompts_per_task=8), []
    for seed, (question, (_, scene)) in enumerate(zip(suite.questions(None), suite.scenes(), strict=True)):
        right.append(suite.verdict(question, detected(spoil(drawn(scene, seed)))).score)
    assert len(right) == 72 and np.mean(right) >= least


def test_the_detector_measures_objects_in_the_pictures_own_pixels() -> None:
    thing = world.Thing("square", "red", "large")
    layout = world.Layout(((thing, 0.5, 0.4, 0.2, 0.0),), (0.0, 0.0), 1.0)
    for side in (48, 64, 160):
        picture = world.drawn(np.full((side, side, 3), 240, np.float32), layout, 0.5)
        found = detected(np.asarray(picture, np.uint8))
        (one,) = found["objects"]
        half = 0.2 * np.sqrt(np.pi) / 2
        edges = np.array([0.5 - half, 0.4 - half, 0.5 + half, 0.4 + half]) * side
        assert found["size"] == [side, side] and (one["name"], one["colour"]) == ("square", "red")
        assert np.abs(np.array(one["box"]) - edges).max() < 0.03 * side
        assert one["radius"] == pytest.approx(0.2, abs=0.02)


def test_what_is_no_shape_of_the_world_has_no_name() -> None:
    bar = np.full((64, 64, 3), 240, np.uint8)
    bar[30:34, 5:60] = (200, 0, 0)
    assert [one["name"] for one in detected(bar)["objects"]] == [OTHER]
    assert detected(np.full((64, 64, 3), 90, np.uint8))["objects"] == []
