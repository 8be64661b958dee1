"""What every checkpoint is asked: the prompts of the suites, and how answers are drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import Edge, Job, JobStage, Row
from stages.evaluate.suite import Question
from stages.evaluate.suites import Options, meant, suite_of


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How answers are drawn; what does not apply to a recipe is left aside."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Tokens that compete; 0: all."""
    top_p: float = 1.0
    """Least share of probability that competes; 1: all."""
    guidance: float = 1.0
    """Away from what is drawn without the prompt; 1: none."""
    negative: str = ""
    """A prompt to be guided away from, instead of none."""
    noise_steps: int = 50
    """Of drawing latents out of noise."""
    max_tokens: int = 64
    """Of a text."""
    frames: int = 1
    """Of a film."""
    pixels: int | None = None
    """Side of the pictures; unset: as in training."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One suite as it is asked."""

    samples: int = 4
    """Answers to a prompt (GenEval: 4)."""
    prompts: str | None = None
    """File of prompts, for suites that have none of their own."""
    limit: int | None = None
    """Only the first so many questions."""
    seed: int = 0
    drawn: Drawn = field(default_factory=Drawn)

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.limit or 1) < 1:
            raise UserError(f"samples={self.samples}, limit={self.limit} asks nothing: give 1 or more of each")


@dataclass(frozen=True, kw_only=True)
class Questions(JobStage):
    """One row per question of every suite that is asked.

    `question` names all that decides its answers; how many of them are wanted stands beside it, so that more answers
    add to those that are there.
    """

    writes: ClassVar[str] = "questions"
    inputs: ClassVar[tuple[Edge, ...]] = ()
    content: ClassVar[tuple[str, ...] | None] = ("question", "samples")
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("question", pa.string()),
            ("suite", pa.string()),
            ("task", pa.string()),
            ("prompt", pa.string()),
            ("about", pa.string()),
            pa.field("given", pa.large_binary(), nullable=True),
            ("asks", pa.string()),
            ("evidence", pa.string()),
            ("how", pa.string()),
            ("samples", pa.int64()),
        ]
    )

    suites: Mapping[str, Asked] = field(default_factory=dict)
    """By name (stages/evaluate/suites.py)."""
    options: Options = field(default_factory=dict)
    """The suites' own settings."""

    def __post_init__(self) -> None:
        for name in self.suites:
            suite_of(name, self.options)
        if not self.suites:
            raise UserError("no suite is asked for: choose evaluation=fast, or write questions.suites.composition={}")

    def settings(self) -> dict[str, Any]:
        """Files of prompts by what they hold, not by where they lie."""
        suites = {name: asdict(asked) | {"prompts": _digest(asked.prompts)} for name, asked in self.suites.items()}
        return super().settings() | {"suites": suites} | meant(self.options)

    def run(self, job: Job) -> Iterator[Row]:
        """Suite by suite."""
        for name, asked in self.suites.items():
            suite = suite_of(name, self.options)
            how = json.dumps(asdict(asked.drawn) | {"seed": asked.seed}, sort_keys=True)
            for number, question in enumerate(suite.questions(_read(asked.prompts))):
                if asked.limit is not None and number >= asked.limit:
                    break
                about = json.dumps(question.about, sort_keys=True)
                yield {
                    "question": _name(name, question, about, how),
                    "suite": name,
                    "task": question.task,
                    "prompt": question.prompt,
                    "about": about,
                    "given": question.given,
                    "asks": suite.asks,
                    "evidence": suite.evidence,
                    "how": how,
                    "samples": asked.samples,
                    "parents": [],
                    "label": f"{name}: {question.prompt[:60]}",
                }


def _name(suite: str, question: Question, about: str, how: str) -> str:
    given = hashlib.sha256(question.given).hexdigest() if question.given is not None else ""
    told = json.dumps([suite, question.task, question.prompt, about, how, given])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    found = Path(path).expanduser()
    if not found.is_file():
        raise UserError(f"prompts={path} is no file: give the path of a file of prompts")
    return found.read_bytes()


def _digest(path: str | None) -> str | None:
    data = _read(path)
    return None if data is None else hashlib.sha256(data).hexdigest()
