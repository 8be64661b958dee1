"""Caption metrics equal what pycocoevalcap gives with Java's tokenizer; ours says the same words."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.types import UserError
from stages.evaluate.statistics import intervals
from stages.evaluate.suite import Judged
from stages.evaluate.suite_captions import PROMPT, Captions
from stages.evaluate.words import words

SUITE = Captions()


def asked(references: Sequence[Sequence[str]]) -> list[Any]:
    lines = [json.dumps({"captions": list(some), "picture": base64.b64encode(b"png").decode()}) for some in references]
    return list(SUITE.questions("\n".join(lines).encode()))


def judged(said: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = (), index: int = 0) -> Any:
    return [
        Judged(
            question=names[i] if names else str(i),
            task=question.task,
            index=index,
            verdict=SUITE.verdict(question, {"text": text}),
        )
        for i, (text, question) in enumerate(zip(said, asked(references), strict=True))
    ]


def scored(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    return SUITE.scores(SUITE.settled(judged(said, references)))


@pytest.fixture(scope="module")
def expected(shared: Path) -> Mapping[str, Any]:
    return json.loads((shared / "oracles" / "caption_metrics" / "expected.json").read_text())


@pytest.fixture(scope="module")
def coco80(shared: Path) -> list[dict[str, Any]]:
    lines = (shared / "text" / "coco80_captions_boxes.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.shared
def test_the_example_of_nlg_eval(shared: Path, expected: Mapping[str, Any]) -> None:
    folder = shared / "oracles" / "caption_metrics"
    said, *others = ((folder / f"nlg_eval_{n}.txt").read_text().splitlines() for n in ("hyp", "ref1", "ref2"))
    scores = scored(said, list(zip(*others, strict=True)))
    told = expected["nlg_eval_example"]
    for name, value in scores.items():
        assert value == pytest.approx(told["pycocoevalcap_gives"][name], rel=1e-12)
        assert value == pytest.approx(told["expected"][name], abs=1e-6)
    single = expected["nlg_eval_single"]
    scores = scored([single["hyp"]], [single["refs"]])
    assert all(value == pytest.approx(single["expected"][name], rel=1e-5) for name, value in scores.items())


@pytest.mark.shared
def test_the_example_of_clipscore(shared: Path, expected: Mapping[str, Any]) -> None:
    folder = shared / "oracles" / "caption_metrics"
    said, references = (json.loads((folder / f"clipscore_{n}.json").read_text()) for n in ("good_captions", "refs"))
    names = sorted(said)
    texts = [said[name] if isinstance(said[name], str) else said[name][0] for name in names]
    scores = scored(texts, [references[name] for name in names])
    told = expected["clipscore_good"]["expected"]
    assert scores["CIDEr"] == pytest.approx(told["CIDER"], abs=5e-5)
    assert [scores[f"Bleu_{n}"] for n in range(1, 5)] == pytest.approx(
        [told[f"BLEU-{n}"] for n in range(1, 5)], abs=5e-5
    )


@pytest.mark.shared
def test_80_captions_of_people_as_with_javas_tokenizer(coco80: list[dict[str, Any]], expected: Any) -> None:
    said, references = [one["captions"][4] for one in coco80], [one["captions"][:4] for one in coco80]
    settled = SUITE.settled(judged(said, references, [one["id"] for one in coco80]))
    scores, told = SUITE.scores(settled), expected["coco80"]
    assert scores == pytest.approx({name: told["expected"][name] for name in scores}, rel=1e-12)
    for one in settled:
        assert one.verdict.score == pytest.approx(told["per_item_CIDEr"][one.question], rel=1e-9, abs=1e-12)
    shifted = scored([*said[1:], said[0]], references)
    control = told["shifted_control"]["expected"]
    assert shifted == pytest.approx({name: control[name] for name in shifted}, rel=1e-9)


@pytest.mark.shared
def test_intervals_of_captions(coco80: list[dict[str, Any]]) -> None:
    said, references = [one["captions"][4] for one in coco80], [one["captions"][:4] for one in coco80]
    settled = SUITE.settled(judged(said, references))
    found = intervals(SUITE.scores, settled, resamples=300)["CIDEr"]
    # measured before: an item's deviation is .70, so the error of the mean of 80 is .078
    assert 2.5 * 0.078 < found.high - found.low < 5 * 0.078 and found.low < 0.978 < found.high


def test_answers_to_the_same_picture_do_not_make_its_words_common() -> None:
    references = [["a red cat sits"], ["two blue dogs run"], ["the sea at night"]]
    said = ["a red cat", "blue dogs", "the sea"]
    once = SUITE.settled(judged(said, references))
    twice = SUITE.settled([*judged(said, references), *judged(said, references, index=1)])
    assert [one.verdict.score for one in twice[:3]] == [one.verdict.score for one in once]
    assert SUITE.scores(twice)["CIDEr"] == pytest.approx(SUITE.scores(once)["CIDEr"])
    assert SUITE.scores([]) == {}


def test_an_empty_answer_scores_nothing() -> None:
    scores = scored(["", "."], [["a cat"], ["a dog"]])
    assert scores["CIDEr"] == 0 and max(scores.values()) < 1e-6


def test_words_of_the_tokenizer_of_penn() -> None:
    """Left what a person wrote, right what PTBTokenizer 3.4.1 said, less punctuation."""
    told = {
        "The man's dog isn't John's; it's the U.S. flag (red, white & blue) at 12:45 p.m.": "the man 's dog is n't"
        " john 's it 's the u.s. flag -lrb- red white & blue -rrb- at 12:45 p.m.",
        "\"Hello,\" she said... they've gone -- I'll go! He can't, she cannot, we're gonna.": "hello she said they"
        " 've gone i 'll go he ca n't she can not we 're gon na",
        "A close-up of 3/4 stop-sign/light w/ 10,000 cars, 2nd Ave. dogs' cats' I'M DON'T": "a close-up of 3/4"
        " stop-sign/light w / 10,000 cars 2nd ave. dogs cats i 'm do n't",
        "A cat and a dog...playing. it's a 4x4 #1 @ home ~ $5 50% off": "a cat and a dog playing it 's a 4x4 # 1 @"
        " home ~ $ 5 50 % off",
        "": "",
    }
    assert [" ".join(words(text)) for text in told] == list(told.values())


def test_questions_show_the_picture() -> None:
    (question,) = asked([["a cat"]])
    assert question.prompt == PROMPT and question.given == b"png" and question.about == {"captions": ["a cat"]}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (None, "JSON lines"),
        (b"oops", "line 1"),
        (b'{"captions": ["a"], "picture": "!"}', "line 1"),
        (b'{"captions": [], "picture": ""}', "empty"),
        (b'{"captions": ["..."], "picture": ""}', "empty"),
    ],
)
def test_what_cannot_be_asked(prompts: bytes | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(SUITE.questions(prompts))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("pycocoevalcap", "pycocoevalcap.bleu", "pycocoevalcap.bleu.bleu_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"plait\[captions\]"):
        scored(["a"], [["a"]])
