"""Rewritten prompts: what was said is kept, names the answers and the score; judges see what the suite asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.types import TransientError, UserError
from pipelines.config import strict
from stages.evaluate.answering import seed_of
from stages.evaluate.judging import verdicts_of
from stages.evaluate.questions import Asked, Questions
from stages.evaluate.rewriting import Rewriter
from stages.evaluate.suite_geneval import GenEval
from tests.stages.endpoint_server import Endpoint, said
from tests.stages.fake_job import FakeJob

CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (CAT, DOG)))
    return str(path)


def stage(prompts: str, rewriter: dict[str, Any] | None = None, **more: Any) -> Questions:
    asked = {"prompts": prompts, **more} | ({"rewriter": rewriter} if rewriter else {})
    return strict(Questions, {"suites": {"geneval": asked}}, "questions")


def rows(tmp_path: Path, made: Questions) -> tuple[list[dict[str, Any]], FakeJob]:
    job = FakeJob(tmp_path)
    return list(made.run(job)), job


def longer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
    return 200, said("a fluffy cat" if "of a cat" in asked_text(body) else "a big dog")


def asked_text(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"]


def test_what_was_said_is_the_prompt_and_names_answers_and_seeds(
    endpoint: Endpoint, prompts: str, tmp_path: Path
) -> None:
    endpoint.answer = longer
    plain, _ = rows(tmp_path, stage(prompts))
    made, job = rows(tmp_path, stage(prompts, {"model": "m"}))
    assert [row["prompt"] for row in made] == ["a fluffy cat", "a big dog"] and not job.rejected
    about = json.loads(made[0]["about"])
    assert about["rewritten_from"] == "a photo of a cat" and about["rewritten_by"] == Rewriter(model="m").name
    assert about["include"] == CAT["include"] and set(made[0]) == set(plain[0])
    assert len({row["question"] for row in [*plain, *made]}) == 4
    assert seed_of(0, plain[0]["question"], 0) != seed_of(0, made[0]["question"], 0)
    assert len(endpoint.requests) == 2 and all(body["temperature"] == 0 for body in endpoint.requests)
    assert rows(tmp_path, stage(prompts, {"model": "m"}))[0] == made
    endpoint.answer = lambda body, number: (200, said("another cat"))
    assert rows(tmp_path, stage(prompts, {"model": "m"}, limit=1))[0][0]["question"] != made[0]["question"]


def test_without_a_rewriter_keys_and_names_are_what_they_were(prompts: str, tmp_path: Path) -> None:
    assert set(stage(prompts).settings()["suites"]["geneval"]) == {"samples", "prompts", "limit", "seed", "drawn"}
    told = stage(prompts, {"model": "m"}).settings()["suites"]["geneval"]["rewriter"]
    assert told == Rewriter(model="m").name != Rewriter(model="m", prompt="more: {prompt}").name
    assert Rewriter(model="m", max_tokens=9).name != Rewriter(model="n").name
    assert not any("rewritten" in row["about"] for row in rows(tmp_path, stage(prompts))[0])


def test_the_judge_sees_the_suites_own_prompt_and_the_verdict_names_the_rewriter(
    endpoint: Endpoint, prompts: str, tmp_path: Path
) -> None:
    endpoint.answer = longer
    seen: list[str] = []

    class Sees:
        name, gives = "detector", "objects"

        def evidence(self, answers: Any) -> list[dict[str, Any]]:
            seen.extend(one.question.prompt for one in answers)
            cat = {"name": "cat", "box": [0, 0, 5, 5], "score": 0.9}
            return [{"objects": [cat], "size": [9, 9]} for _ in answers]

    made = [*rows(tmp_path, stage(prompts, {"model": "m"}))[0], *rows(tmp_path, stage(prompts))[0]]
    more = {"files_sha256": "f", "training": "t", "step": 1, "index": 0, "media": None, "text": ""}
    (cat,), (dog,), (plain,), _ = verdicts_of([row | more for row in made], Sees(), GenEval())  # type: ignore[misc]
    assert seen == ["a photo of a cat", "a photo of a dog"] * 2
    assert cat["judge"] == f"detector, prompts rewritten by {Rewriter(model='m').name}" and plain["judge"] == "detector"
    assert (cat["score"], dog["score"], cat["prompt"]) == (1, 0, "a fluffy cat")


def test_a_refusal_is_rejected_with_its_reason_and_the_others_stay(
    endpoint: Endpoint, prompts: str, tmp_path: Path
) -> None:
    endpoint.answer = lambda body, number: (
        (400, {"error": {"message": "no cats"}}) if "of a cat" in asked_text(body) else (200, said("a big dog"))
    )
    made, job = rows(tmp_path, stage(prompts, {"model": "m"}))
    assert [row["prompt"] for row in made] == ["a big dog"]
    ((key, reason),) = job.rejected.items()
    assert "refused" in reason and "no cats" in reason and len(key) == 16
    cut = said("a very big")
    cut["choices"][0]["finish_reason"] = "length"
    endpoint.answer = lambda body, number: (200, cut)
    made, job = rows(tmp_path, stage(prompts, {"model": "m", "max_tokens": 3}))
    assert not made and set(job.rejected.values()) == {"The rewritten prompt is longer than 3 tokens."}


def test_an_endpoint_that_is_away_blames_no_prompt(
    endpoint: Endpoint, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.answer = lambda body, number: (404, {"error": {"message": "no such model"}})
    with pytest.raises(TransientError, match="404"):
        rows(tmp_path, stage(prompts, {"model": "m"}))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TransientError, match="OPENAI_API_KEY"):
        rows(tmp_path, stage(prompts, {"model": "m"}))


def test_what_cannot_be_rewritten_is_one_sentence(prompts: str) -> None:
    with pytest.raises(UserError, match=r"write \{prompt\} into it"):
        Rewriter(model="m", prompt="say it again")
    with pytest.raises(UserError, match="give 1 or more"):
        Rewriter(model="m", max_tokens=0)
    with pytest.raises(UserError, match="captions asks for texts"):
        Questions(suites={"captions": Asked(rewriter=Rewriter(model="m"))})
