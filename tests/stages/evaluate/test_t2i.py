"""T2I-CompBench: products of likelihoods, and where things lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.types import BadRow, UserError
from stages.evaluate.suite import Judged
from stages.evaluate.suite_t2i import Attributes, Spatial, complex_score


def test_attributes_are_a_product() -> None:
    suite = Attributes()
    (question,) = suite.questions(b"a green bench and a blue bowl\n")
    assert question.about["questions"] == ["a green bench?", "a blue bowl?"] and question.task == "color"
    assert suite.verdict(question, {"answers": ["yes", "no"], "yes": [0.5, 0.4]}).score == pytest.approx(0.2)
    assert [suite.verdict(question, {"answers": said}).score for said in (["Yes.", "yes"], ["yes", "no"])] == [1, 0]
    with pytest.raises(BadRow, match="1 answers to 2"):
        suite.verdict(question, {"answers": ["yes"]})
    (given,) = suite.questions(b'{"prompt": "The hat was on the rack.", "phrases": ["The hat", "the rack"]}')
    assert given.about["questions"] == ["The hat?", "the rack?"]


def placed(prompt: str, *boxes: tuple[float, ...], score: float = 0.8, suite: Spatial | None = None) -> float:
    suite = suite or Spatial()
    (question,) = suite.questions(prompt.encode())
    objects: list[dict[str, Any]] = [
        {"name": name, "box": list(box), "score": score}
        for name, box in zip(question.about["things"], boxes, strict=False)
    ]
    return suite.verdict(question, {"objects": objects, "size": [512, 512]}).score


def test_places() -> None:
    left, right, below = (0, 0, 100, 100), (300, 0, 400, 100), (0, 300, 100, 400)
    assert placed("a cat on the left of a dog", left, right) == pytest.approx(0.4 + 0.5)
    assert placed("a cat on the right of a dog", right, left) == pytest.approx(0.9)
    assert placed("a cat on the top of a dog", left, below) == pytest.approx(0.9)
    assert placed("a cat on the bottom of a dog", below, left) == pytest.approx(0.9)
    # the wrong side leaves 0.4 for being there, which is under a half
    assert (
        placed("a cat on the right of a dog", left, right) == 0
        and placed("a cat on the top of a dog", left, right) == 0
    )
    assert placed("a cat on the left of a dog", left) == 0 and placed("a cat near a dog") == 0
    # beside: one axis is near, or neither is
    assert placed("a cat next to a dog", left, right) == pytest.approx(0.9)
    assert placed("a cat near a dog", left, (300, 300, 400, 400)) == pytest.approx(0.4 + 150 / 300 / 2)
    # half of the first lies in the second: 5000 of 15000
    assert placed("a cat on the left of a dog", left, (50, 0, 150, 100)) == pytest.approx(0.4 + 0.1 / (1 / 3) / 2)


def test_people_are_persons_and_prompts_must_say_a_place() -> None:
    (question,) = Spatial().questions(b"a girl on the top of a frog")
    assert question.about == {"locality": "on the top of", "things": ["person", "frog"]}
    with pytest.raises(UserError, match="says no place"):
        list(Spatial().questions(b"a girl and a frog"))
    with pytest.raises(UserError, match="no two things"):
        list(Spatial().questions(b"near a frog"))
    for suite in (Spatial(), Attributes()):
        with pytest.raises(UserError, match=r"_val\.txt"):
            list(suite.questions(None))
        with pytest.raises(UserError, match="cannot be read"):
            list(suite.questions(b'{"oops": 1}'))


def test_complex_is_the_mean_of_what_is_asked() -> None:
    assert complex_score(0.6) == 0.6 and complex_score(0.6, 0.2) == pytest.approx(0.4)
    assert complex_score(0.6, 0.3, 0.3) == pytest.approx(0.4) and complex_score(0.6, action=0.0) == 0.3


@pytest.mark.shared
def test_the_published_prompts(shared: Path) -> None:
    folder = shared / "prompts" / "t2i_compbench"
    assert len(list(Spatial().questions((folder / "spatial_val.txt").read_bytes()))) == 300
    for category in ("color", "shape", "texture"):
        questions = list(Attributes(category=category).questions((folder / f"{category}_val.txt").read_bytes()))
        assert len(questions) == 300 and all(one.about["questions"] for one in questions)


def test_scores() -> None:
    suite = Attributes(category="shape")
    (question,) = suite.questions(b"a round hat")
    judged = [
        Judged(question="q", task="shape", index=i, verdict=suite.verdict(question, {"answers": ["a"], "yes": [p]}))
        for i, p in enumerate((0.2, 0.6))
    ]
    assert suite.scores(judged) == pytest.approx({"attributes": 0.4, "shape": 0.4}) and suite.scores([]) == {}
    assert Spatial().scores(judged) == pytest.approx({"spatial": 0.4})
