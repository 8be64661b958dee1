"""Texts: languages are told, exact and near copies found among real documents, wrong decodings measured."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.text import CleanTexts, DistinctTexts, TextScores
from tests.stages.fake_job import FakeJob, key_of, table_of


@pytest.fixture(scope="module")
def scores():
    stage = TextScores()
    tools = stage.setup(None)  # type: ignore[arg-type]
    return lambda *texts: [made[0] for made in stage.process([{"text": text} for text in texts], tools)]


def duplicates(folder: Path, measured: list[dict[str, Any]], passing: set[int] | None = None) -> dict[int, int]:
    """Number of the text that stands for a text, by its number."""
    keys = [key_of("texts", n) for n in range(len(measured))]
    rows = [row | {"parents": [key], "key": key_of("score", key)} for key, row in zip(keys, measured, strict=True)]
    random.Random(1).shuffle(rows)
    texts = [{"digest": "d", "key": keys[n]} for n in (passing if passing is not None else range(len(keys)))]
    tables = {
        "texts": table_of(texts, pa.schema([("digest", pa.string())]), "texts"),
        "text_scores": table_of(rows, TextScores.schema, "text_scores"),
    }
    made = list(DistinctTexts().run(FakeJob(folder, tables)))  # type: ignore[arg-type]
    assert len(made) == len(measured) and all(set(row) >= set(DistinctTexts.schema.names) for row in made)
    return {keys.index(r["parents"][0]): keys.index(r["duplicate_of"]) for r in made if r["duplicate_of"]}


def test_languages_and_lengths(scores) -> None:
    told = {
        "en": "The quick brown fox jumps over the lazy dog and runs into the forest.",
        "fr": "Sur la plateforme, plusieurs manieres d'acceder a ces fonctionnalites sont concues.",
        "zh": "\u4f60\u597d\uff0c\u8bf7\u95ee\u4f60\u662f\u8c01\uff1f\u6b22\u8fce\u6765\u5230\u5317\u4eac\u3002",
        "de": "Der schnelle braune Fuchs springt ueber den faulen Hund und laeuft in den Wald.",
    }
    rows = scores(*told.values())
    assert [row["language"] for row in rows] == list(told) and min(row["sure"] for row in rows) > 0.4
    assert rows[0]["num_words"] == 14 and rows[2]["num_words"] == 13
    assert set(rows[0]) == set(TextScores.schema.names)


def test_wrong_decodings_and_noise_are_measured(scores) -> None:
    clean, broken, table = scores("A plain sentence.", "A b\ufffdd \x01\x02\ue000 one", "12 | 34 | 56 | 78 = 99 %%%")
    assert clean["bad_share"] == 0 and broken["bad_share"] > 0.2
    assert clean["letter_share"] > 0.9 and table["letter_share"] < 0.2


@pytest.mark.shared
def test_copies_among_real_documents_are_found_and_the_others_left_alone(scores, shared: Path, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in (shared / "text/dj_dedup.jsonl").read_text().splitlines()]
    texts += [json.loads(line)["text"] for line in (shared / "text/dj_redpajama_cc.jsonl").read_text().splitlines()]
    texts.append(texts[-1].upper().replace(" ", "  "))
    words = texts[-2].split()
    texts.append(" ".join(words[: len(words) // 2] + ["inserted"] + words[len(words) // 2 :]))
    found = duplicates(tmp_path, scores(*texts))
    family = set(range(len(texts) - 3, len(texts)))  # a document, shouted, and with a word put in
    assert len(family - set(found)) == 1 and {found[n] for n in family & set(found)} == family - set(found)
    for one, other in found.items():
        first, second = (set(texts[n].casefold().split()) for n in (one, other))
        assert len(first & second) / len(first | second) > 0.5, (texts[one][:80], texts[other][:80])


def test_two_editions_of_a_novel_are_near_copies_and_plays_are_not(scores, shared: Path, tmp_path: Path) -> None:
    names = ("alice_11.txt", "alice_30_oldedition.txt", "tinyshakespeare.txt")
    # the two differ in front matter and layout; the novel's first chapters are the same
    texts = [(shared / "text" / name).read_text(encoding="utf-8", errors="replace")[20_000:90_000] for name in names]
    measured = scores(*texts)
    assert set(duplicates(tmp_path, measured)) <= {0, 1}


def test_a_text_that_does_not_pass_stands_for_nobody(scores, tmp_path: Path) -> None:
    measured = scores("the very same words of a text", "The very same words, of a text!", "something else altogether")
    assert len(duplicates(tmp_path, measured)) == 1
    assert duplicates(tmp_path, measured, passing={0, 2}) == {}


def test_clean_texts_are_composed_and_without_control_characters() -> None:
    (made,) = CleanTexts().process([{"text": "cafe\u0301 \x07one\n", "held_out": False}], None)
    assert made[0]["text"] == "caf\u00e9 one" and made[0]["num_chars"] == 8
