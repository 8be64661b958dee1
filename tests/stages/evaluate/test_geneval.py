"""GenEval: every clause on hand-made detections, the published tables, and what people saw."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.types import UserError
from stages.evaluate.suite import Judged, Question, Verdict
from stages.evaluate.suite_geneval import COLOURS, TASKS, GenEval

SUITE = GenEval()


def thing(name: str, box: tuple[float, ...] = (0, 0, 10, 10), score: float = 0.95, colour: str = "") -> dict[str, Any]:
    return {"name": name, "box": list(box), "score": score, "colour": colour or None}


def asked(task: str, *include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> Question:
    return Question(prompt="", task=task, about={"include": list(include), "exclude": list(exclude)})


def right(question: Question, *objects: dict[str, Any], suite: GenEval = SUITE) -> bool:
    verdict = suite.verdict(question, {"objects": list(objects), "size": [100, 100]})
    assert (verdict.score == 1.0) == (not verdict.parts["reasons"]) and verdict.score in (0.0, 1.0)
    return verdict.score == 1.0


def test_the_published_prompts(shared: Path) -> None:
    for name in ("evaluation_metadata.jsonl", "evaluation_metadata_long.jsonl"):
        questions = list(SUITE.questions((shared / "prompts" / "geneval" / name).read_bytes()))
        tasks = Counter(question.task for question in questions)
        assert [tasks[task] for task in TASKS] == [80, 99, 80, 94, 100, 100]
    clauses = [clause for question in questions for clause in question.about["include"]]
    assert {clause["color"] for clause in clauses if "color" in clause} <= set(COLOURS)
    assert {clause["position"][0] for clause in clauses if "position" in clause} == {
        "left of", "right of", "above", "below",
    }  # fmt: skip


def test_prompts_that_are_none() -> None:
    with pytest.raises(UserError, match=r"evaluation_metadata\.jsonl"):
        list(SUITE.questions(None))
    with pytest.raises(UserError, match="line 2"):
        list(SUITE.questions(b'{"tag": "colors", "prompt": "a", "include": []}\n{"prompt": "a"}'))
    with pytest.raises(UserError, match="single_object"):
        list(SUITE.questions(b'{"tag": "other", "prompt": "a", "include": []}'))


def test_objects_must_be_sure_and_surer_to_be_counted() -> None:
    one = asked("single_object", {"class": "cow", "count": 1})
    assert right(one, thing("cow", score=0.31)) and not right(one, thing("cow", score=0.3)) and not right(one)
    assert not right(one, thing("dog"))
    two = asked("counting", {"class": "cow", "count": 2}, exclude=({"class": "cow", "count": 3},))
    cows = [thing("cow", score=0.91)] * 4
    assert [right(two, *cows[:n]) for n in range(5)] == [False, False, True, False, False]
    assert right(two, *cows[:2], *[thing("cow", score=0.9)] * 5)


def test_at_most_sixteen_of_a_class_count() -> None:
    many = asked("counting", {"class": "cow", "count": 16}, exclude=({"class": "cow", "count": 17},))
    assert right(many, *[thing("cow")] * 30) and not right(many, *[thing("cow")] * 30, suite=GenEval(max_objects=17))


def test_the_surest_object_has_the_colour() -> None:
    red = asked("colors", {"class": "car", "count": 1, "color": "red"})
    unsure, sure = thing("car", score=0.5, colour="red"), thing("car", score=0.9, colour="blue")
    assert right(red, unsure) and not right(red, unsure, sure) and not right(red, thing("car"))
    both = asked(
        "color_attr",
        {"class": "car", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    )
    assert right(both, thing("car", colour="red"), thing("dog", colour="blue"))
    assert not right(both, thing("car", colour="blue"), thing("dog", colour="red"))


def test_sides() -> None:
    """Boxes of 10; the margin is a tenth of both sizes, 2 pixels."""

    def sides(x: float, y: float) -> set[str]:
        return SUITE._sides((50 + x, 50 + y, 60 + x, 60 + y), (50, 50, 60, 60))

    assert sides(-20, 0) == {"left of"} and sides(20, 0) == {"right of"}
    assert sides(0, -20) == {"above"} and sides(0, 20) == {"below"}
    assert sides(20, 20) == {"right of", "below"} and sides(-20, -20) == {"left of", "above"}
    assert sides(2, 2) == set() and sides(0, 0) == set() and sides(-2, 0) == set()
    # (4 - 2) / 4 is 0.5, which is not above it; (4.1 - 2) / 4.1 is
    assert sides(4, 0) == set() and sides(4.1, 0) == {"right of"}
    # 18 / sqrt(20^2 + 12^2) = 0.77, 10 / 23.3 = 0.43
    assert sides(20, 12) == {"right of"}


def test_a_side_needs_its_target() -> None:
    side = asked(
        "position", {"class": "toaster", "count": 1}, {"class": "couch", "count": 1, "position": ["left of", 0]}
    )
    left, at = thing("couch", (0, 40, 20, 60)), thing("toaster", (60, 40, 80, 60))
    assert right(side, left, at) and not right(side, left) and not right(side, at)
    assert not right(side, thing("couch", (60, 40, 80, 60)), thing("toaster", (0, 40, 20, 60)))
    told = SUITE.verdict(side, {"objects": [left]}).parts["reasons"]
    assert told == ["expected toaster>=1, found 0", "no target for couch to be left of"]
    # of two couches the surer one is asked
    assert right(side, left, at, thing("couch", (90, 40, 99, 60), score=0.4))


def of_shares(shares: list[float]) -> list[Judged]:
    """Verdicts of 100 pictures a task with these shares right."""
    return [
        Judged(question=f"{task}{i}", task=task, index=0, verdict=Verdict(score=float(i < round(100 * share))))
        for task, share in zip(TASKS, shares, strict=True)
        for i in range(100)
    ]


@pytest.mark.shared
def test_published_totals(shared: Path) -> None:
    rows = json.loads((shared / "oracles" / "benchmark_scores.json").read_text())["geneval"]["models"]
    assert len(rows) == 11
    for row in rows.values():
        scores = SUITE.scores(of_shares(row["tasks"]))
        assert [scores[task] for task in TASKS] == pytest.approx(row["tasks"])
        assert scores["overall"] == pytest.approx(row["overall"], abs=0.01)


def test_no_total_while_a_task_is_missing() -> None:
    some = of_shares([0.5] * 6)
    assert SUITE.scores(some)["overall"] == 0.5
    assert set(SUITE.scores([one for one in some if one.task != "position"])) == {*TASKS} - {"position"}
    assert SUITE.scores([]) == {}


def as_seen(row: dict[str, str]) -> list[dict[str, Any]]:
    """What one person said of a picture, as a detector would."""
    x = {"left": -30, "right": 30}.get(row["Answer.task-position-x"], 0)
    y = {"above": -30, "below": 30}.get(row["Answer.task-position-y"], 0)
    objects = []
    for i, (dx, dy) in enumerate(((x, y), (0, 0))):
        name, num = row[f"Input.object_{i}_name"], int(float(row[f"Answer.task-count-{i}"] or 0))
        colours = row[f"Answer.task-color-{i}"].split("|")
        wanted = [c for c in row["Input.caption"].split() if c in colours]
        box = (40 + dx, 40 + dy, 50 + dx, 50 + dy)
        objects += [thing(name, box, colour=(wanted or colours)[0])] * num if name else []
    return objects


@pytest.mark.shared
def test_what_people_saw_comes_near_the_published_row(shared: Path) -> None:
    """Answers of five people on 400 pictures of Stable Diffusion 2 (the authors' study), through the same clauses."""
    prompts = (shared / "prompts" / "geneval" / "evaluation_metadata.jsonl").read_bytes()
    questions = list(SUITE.questions(prompts))
    with (shared / "oracles" / "geneval_human_annotations_sdv2.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    votes: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        question = questions[int(row["Input.prompt_id"])]
        assert question.prompt == row["Input.caption"]
        verdict = SUITE.verdict(question, {"objects": as_seen(row)})
        votes.setdefault((row["Input.prompt_id"], row["Input.image_id"]), []).append(verdict.score)
    judged = [
        Judged(
            question=prompt,
            task=questions[int(prompt)].task,
            index=int(image),
            verdict=Verdict(score=float(sum(some) > len(some) / 2)),
        )
        for (prompt, image), some in votes.items()
    ]
    assert len(judged) == 400
    scores = SUITE.scores(judged)
    published = json.loads((shared / "oracles" / "benchmark_scores.json").read_text())["geneval"]["models"]
    row = dict(zip(TASKS, published["Stable Diffusion v2.1"]["tasks"], strict=True))
    assert all(abs(scores[task] - row[task]) < 0.25 for task in TASKS)
    assert scores["overall"] == pytest.approx(published["Stable Diffusion v2.1"]["overall"], abs=0.08)
