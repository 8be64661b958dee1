"""DPG-Bench (ELLA, Hu et al. 2024, arXiv 2403.05135): long prompts, each with a graph of questions about its picture.

The rules are those of TencentQQGYLab/ELLA@3c228f1d, dpg_bench/compute_dpg_bench.py; where ours differ, `Dpg` says so.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from infra.types import BadRow, UserError
from stages.evaluate.judge import said_yes
from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
_HOW = "give ELLA's dpg_bench.csv, or JSON lines with item_id, text and questions of id, question, tuple and dependency"


@dataclass(frozen=True, kw_only=True)
class Dpg(Suite):
    """1065 prompts, four pictures each; `dpg` is per cent.

    A question counts 1 where the answer is yes, and 0 where a question that it depends on counts 0; in order, so that a
    no goes down the graph. A picture's score is the mean over its questions, a prompt's over its pictures, `dpg` over
    the prompts. Categories ("entity", and below it "entity - whole") are means of the answers before that.

    Differs from the published script: that one skips the first line of its table, and with it fails on the first
    prompt without a word; of several pictures it counts only the last one's answers in the categories. Its judge is
    mPLUG-large, and only "yes" is a yes; here " Yes." is one too.
    """

    name: ClassVar[str] = "dpg"
    evidence: ClassVar[Evidence] = "answers"
    main: ClassVar[str] = "dpg"

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """Prompts with their graphs, from dpg_bench.csv or JSON lines; prompts alone are no suite."""
        if not prompts:
            raise UserError(f"dpg has no prompts of its own: {_HOW}")
        text = prompts.decode("utf-8-sig")
        for item in _of_lines(text) if text.lstrip().startswith("{") else _of_table(text):
            yield _question(item)

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Share of the questions that count; parts: [yes, asked] by category."""
        graph, answers = question.about["graph"], evidence["answers"]
        if len(graph) != len(answers):
            raise BadRow(f"The judge gave {len(answers)} answers to {len(graph)} questions.")
        said = {node["id"]: float(said_yes(answer)) for node, answer in zip(graph, answers, strict=True)}
        counts = dict(said)
        for node in graph:
            if any(counts[parent] == 0 for parent in node["dependency"]):
                counts[node["id"]] = 0.0
        categories: dict[str, list[float]] = {}
        for node in graph:
            for name in dict.fromkeys(node["category"]):
                yes, asked = categories.get(name, (0.0, 0))
                categories[name] = [yes + said[node["id"]], asked + 1]
        return Verdict(score=math.fsum(counts.values()) / len(counts), parts={"categories": categories})

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Per cent: all, and categories by name."""
        prompts: dict[str, list[float]] = {}
        categories: dict[str, list[float]] = {}
        for one in judged:
            prompts.setdefault(one.question, []).append(one.verdict.score)
            for name, (yes, asked) in one.verdict.parts["categories"].items():
                total = categories.setdefault(name, [0.0, 0.0])
                total[0] += yes
                total[1] += asked
        if not prompts:
            return {}
        means = [math.fsum(some) / len(some) for some in prompts.values()]
        found = {name: 100 * yes / asked for name, (yes, asked) in sorted(categories.items())}
        return found | {"dpg": 100 * math.fsum(means) / len(means)}


def _of_table(text: str) -> Iterator[dict[str, Any]]:
    """Items of ELLA's table: one line a question, those of an item together."""
    reader = csv.DictReader(io.StringIO(text))
    if missing := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
        raise UserError(f"the questions of dpg lack the column {missing[0]}: {_HOW}")
    item: dict[str, Any] = {}
    for row in reader:
        if row["item_id"] != item.get("item_id"):
            if item:
                yield item
            item = {"item_id": row["item_id"], "text": row["text"], "questions": []}
        item["questions"].append(
            {
                "id": row["proposition_id"],
                "question": row["question_natural_language"],
                "tuple": row["tuple"],
                "dependency": row["dependency"].split(","),
            }
        )
    if item:
        yield item


def _of_lines(text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of dpg's prompts is no JSON: {_HOW}") from error
        if not item.get("questions"):
            raise UserError(f"line {number} of dpg's prompts has no questions, only a prompt: {_HOW}")
        yield item


def _question(item: Mapping[str, Any]) -> Question:
    """The prompt with its graph; a question depends only on earlier ones (0: on none)."""
    graph: list[dict[str, Any]] = []
    try:
        for told in item["questions"]:
            detailed = told["tuple"].split("(")[0].strip()
            depends = [int(parent) for parent in told.get("dependency", ())]
            node = {"id": int(told["id"]), "category": [detailed.split("-")[0].strip(), detailed]}
            graph.append(node | {"question": told["question"], "dependency": [parent for parent in depends if parent]})
        ids = [node["id"] for node in graph]
        about = {"item_id": str(item["item_id"]), "questions": [node.pop("question") for node in graph], "graph": graph}
        question = Question(prompt=item["text"], task="dpg", about=about)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"item {item.get('item_id')!r} of dpg cannot be read: {_HOW}") from error
    if len(set(ids)) < len(ids) or any(set(node["dependency"]) - set(ids) for node in graph):
        raise UserError(f"item {item['item_id']!r} of dpg asks twice, or depends on a question that it has not: {_HOW}")
    return question
