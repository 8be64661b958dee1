"""Judges: what was recorded is found again, an endpoint's faults are no answers', and names say what judged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.types import BadRow, TransientError, UserError
from stages.endpoint import connected
from stages.evaluate.judge import Answer, Itself
from stages.evaluate.judge_endpoint import Asked
from stages.evaluate.judge_recorded import Recorded
from stages.evaluate.suite import Question
from stages.evaluate.suite_dpg import Dpg
from stages.evaluate.suite_geneval import GenEval
from tests.stages.endpoint_server import Endpoint, said

GREY = np.full((1, 16, 16, 3), 128, np.uint8)


def answer(index: int = 0, questions: tuple[str, ...] = (), **more: Any) -> Answer:
    question = Question(prompt="a cat", task="t", about={"questions": list(questions)})
    return Answer(question=question, name="q1", index=index, **{"frames": GREY, **more})


def test_an_answer_is_its_own_evidence() -> None:
    (film,) = Itself("pixels").evidence([answer(fps=8.0)])
    assert not isinstance(film, BadRow) and film["frames"] is GREY and film["fps"] == 8
    assert Itself("words").evidence([answer(text="hello")]) == [{"text": "hello"}]
    assert isinstance(Itself("pixels").evidence([answer(frames=None)])[0], BadRow)


def lines(path: Path, *told: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(one) for one in told) + "\n")
    return str(path)


def test_recorded_evidence_is_found_by_name_or_prompt(tmp_path: Path) -> None:
    place = lines(
        tmp_path / "a.jsonl",
        {"question": "q1", "index": 0, "answers": ["yes"], "judge": "mplug"},
        {"question": "a cat", "index": 1, "answers": ["no"], "judge": "mplug"},
    )
    judge = Recorded(place, "answers")
    found = judge.evidence([answer(0), answer(1), answer(2)])
    assert found[:2] == [{"answers": ["yes"]}, {"answers": ["no"]}]
    assert isinstance(found[2], BadRow) and "answer 2" in str(found[2])
    assert judge.name.startswith("recorded-mplug-")
    other = lines(tmp_path / "b.jsonl", {"question": "q1", "index": 0, "answers": ["no"], "judge": "mplug"})
    assert Recorded(other, "answers").name != judge.name


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ([{"question": "q", "index": 0}], "has no answers"),
        ([{"index": 0, "answers": []}], "cannot be read"),
        ([{"question": "q", "index": 0, "answers": []}] * 2, "again"),
        ([{"question": "q", "index": i, "answers": [], "judge": f"j{i}"} for i in (0, 1)], "mixes"),
    ],
)
def test_records_that_cannot_be_used(tmp_path: Path, told: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Recorded(lines(tmp_path / "a.jsonl", *told), "answers")


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded evidence"):
        Recorded(str(tmp_path / "none.jsonl"), "answers")
    with pytest.raises(UserError, match="cannot be recorded"):
        Recorded("any", "pixels")


def test_recorded_detections_through_geneval(tmp_path: Path) -> None:
    suite = GenEval()
    (question,) = suite.questions(
        b'{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}'
    )
    cat = {"name": "cat", "box": [0, 0, 5, 5], "score": 0.9}
    told = [{"question": question.prompt, "index": i, "objects": [cat] * i, "size": [9, 9]} for i in (0, 1)]
    judge = Recorded(lines(tmp_path / "a.jsonl", *told), "objects")
    answers = [Answer(question=question, name="x", index=i) for i in (0, 1)]
    found = [suite.verdict(question, one).score for one in judge.evidence(answers) if not isinstance(one, BadRow)]
    assert found == [0, 1]


def with_likelihoods(text: str, **likely: float) -> dict[str, Any]:
    """A completion whose first token has these probabilities."""
    told = said(text)
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in likely.items()]
    told["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}], "refusal": None}
    return told


def test_an_endpoint_answers_every_question(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body, number: (200, said("Yes." if "cat" in asked_text(body) else "no"))
    judge = Asked(connected(), "m")
    found = judge.evidence([answer(0, ("Is there a cat?", "Is it red?")), answer(1, ("A cat?",)), answer(2)])
    assert found == [{"answers": ["Yes.", "no"]}, {"answers": ["Yes."]}, {"answers": []}]
    assert all("yes or no only" in asked_text(body) and body["temperature"] == 0 for body in endpoint.requests)
    assert not any("logprobs" in body for body in endpoint.requests)
    assert judge.name == Asked(connected(), "m").name != Asked(connected(), "m", prompt="{question}").name


def asked_text(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"].lower()


def test_likelihoods_where_they_are_given(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body, number: (200, with_likelihoods("Yes", Yes=0.5, yes=0.1, No=0.2, a=0.1))
    (found,) = Asked(connected(), "m", probabilities=True).evidence([answer(0, ("Is it?",))])
    assert not isinstance(found, BadRow) and found["yes"] == pytest.approx([0.75])
    assert endpoint.requests[0]["logprobs"] is True and endpoint.requests[0]["top_logprobs"] == 20
    endpoint.answer = lambda body, number: (200, with_likelihoods("Maybe", Maybe=0.9))
    assert Asked(connected(), "m", probabilities=True).evidence([answer(0, ("Is it?",))]) == [{"answers": ["Maybe"]}]


def test_a_refusal_spoils_its_answer_only(endpoint: Endpoint) -> None:
    def answered(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return (400, {"error": {"message": "bad"}}) if "bad" in asked_text(body) else (200, said("yes"))

    endpoint.answer = answered
    found = Asked(connected(retries=0), "m").evidence(
        [answer(0, ("fine?", "bad?")), answer(1, ("fine?",)), answer(2, ("fine?",), frames=None)]
    )
    assert isinstance(found[0], BadRow) and "refused" in str(found[0])
    assert found[1] == {"answers": ["yes"]} and isinstance(found[2], BadRow)


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_an_endpoint_that_is_away_blames_no_answer(endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda body, number: (status, {"error": {"message": "no"}})
    with pytest.raises(TransientError, match=str(status)):
        Asked(connected(retries=0), "m").evidence([answer(0, ("Is it?",))])


def test_dpg_by_an_endpoint(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body, number: (200, said("No" if "red" in asked_text(body) else "Yes"))
    suite = Dpg()
    graph = [
        {"id": 1, "question": "Is there a cat?", "tuple": "entity - whole (cat)", "dependency": []},
        {"id": 2, "question": "Is the cat red?", "tuple": "attribute - color (cat, red)", "dependency": [1]},
    ]
    (question,) = suite.questions(json.dumps({"item_id": "0", "text": "a red cat", "questions": graph}).encode())
    (found,) = Asked(connected(), "m").evidence([Answer(question=question, name="0", index=0, frames=GREY)])
    assert not isinstance(found, BadRow) and suite.verdict(question, found).score == 0.5
