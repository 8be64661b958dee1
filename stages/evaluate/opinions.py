"""Judging by a model that is asked: any OpenAI-compatible endpoint, or what one said before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from stages import weights
from stages.base import Edge, Kit, Outcome, Row, RowStage
from stages.evaluate.judge import Judge
from stages.evaluate.judge_endpoint import PROMPT
from stages.evaluate.judging import ANSWER_COLUMNS, VERDICT_SCHEMA, judged_by_suite
from stages.evaluate.suites import Options, class_of, meant


@dataclass(frozen=True, kw_only=True)
class Opinions(RowStage):
    """One verdict per answer whose suite asks questions about it (DPG-Bench, T2I-CompBench's attributes).

    Each question is one request to a model behind OPENAI_BASE_URL, or is looked up in what was recorded. The rows are
    named by what was said: asked again, an answer that says the same moves nothing.
    """

    writes: ClassVar[str] = "opinions"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("generations", columns=ANSWER_COLUMNS, where="evidence = 'answers'"),)
    content: ClassVar[tuple[str, ...] | None] = ("judge", "parts")
    schema: ClassVar[pa.Schema] = VERDICT_SCHEMA

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """As the endpoint calls it."""
    prompt: str = PROMPT
    """With {question} in it."""
    probabilities: bool = False
    """Ask for the likelihood of a yes; T2I-CompBench's attributes need it."""
    options: Options = field(default_factory=dict)
    """The suites' own settings."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Files of recorded answers, by suite."""

    def settings(self) -> dict[str, Any]:
        """Files by what they hold."""
        files = {name: weights.named(path) for name, path in self.recorded.items()}
        return super().settings() | {"recorded": files} | meant(self.options, ("answers",))

    def setup(self, kit: Kit) -> dict[str, Judge]:
        """Judges by suite; each is made when it is first asked."""
        return {}

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Answers of one suite together."""
        return judged_by_suite(rows, tools, self._judge, self.options)

    def _judge(self, name: str) -> Judge:
        if name in self.recorded:
            from stages.evaluate.judge_recorded import Recorded

            return Recorded(self.recorded[name], class_of(name).evidence)
        from stages.endpoint import connected
        from stages.evaluate.judge_endpoint import Asked

        return Asked(connected(), self.model, prompt=self.prompt, probabilities=self.probabilities)
