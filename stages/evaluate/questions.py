"""What every checkpoint is asked: the prompts of the suites, and how answers are drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import BadRow, Edge, Job, JobStage, Row
from stages.evaluate.rewriting import Rewriter, rewritten
from stages.evaluate.suite import Question, Suite
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
    rewriter: Rewriter | None = None
    """Who says the prompts again before pictures are drawn of them; unset: nobody."""

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.limit or 1) < 1:
            raise UserError(f"samples={self.samples}, limit={self.limit} asks nothing: give 1 or more of each")


@dataclass(frozen=True, kw_only=True)
class Questions(JobStage):
    """One row per question of every suite that is asked.

    `question` names all that decides its answers; how many of them are wanted stands beside it, so that more answers
    add to those that are there.

    With a rewriter `prompt` is what it said, and names the answers and their seeds; the suite's own prompt and the
    rewriter's name are `rewritten_from` and `rewritten_by` in `about`. Answers are judged by the suite's own. A prompt
    that it refuses gives no question, with the reason.
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
        for name, asked in self.suites.items():
            if suite_of(name, self.options).asks == "texts" and asked.rewriter:
                raise UserError(f"{name} asks for texts, whose prompts are not rewritten: leave out its rewriter")
        if not self.suites:
            raise UserError("no suite is asked for: choose evaluation=fast, or write questions.suites.composition={}")

    def settings(self) -> dict[str, Any]:
        """Files of prompts by what they hold, not by where they lie; no word of a rewriter where there is none."""
        suites = {name: _meant(asked) for name, asked in self.suites.items()}
        return super().settings() | {"suites": suites} | meant(self.options)

    def run(self, job: Job) -> Iterator[Row]:
        """Suite by suite."""
        for name, asked in self.suites.items():
            suite = suite_of(name, self.options)
            how = json.dumps(asdict(asked.drawn) | {"seed": asked.seed}, sort_keys=True)
            own = list(islice(suite.questions(_read(asked.prompts)), asked.limit))
            for before, question in zip(own, _said_again(own, asked.rewriter), strict=True):
                label = f"{name}: {before.prompt[:60]}"
                if isinstance(question, BadRow):
                    about = json.dumps(before.about, sort_keys=True)
                    job.reject(bytes.fromhex(_name(name, before, about, how)), label, str(question))
                else:
                    yield _row(suite, question, how, asked.samples) | {"parents": [], "label": label}


def _said_again(questions: Sequence[Question], rewriter: Rewriter | None) -> Sequence[Question | BadRow]:
    """Questions as they are put to the models."""
    if rewriter is None:
        return questions
    from stages.endpoint import connected

    return rewritten(connected(), rewriter, questions)


def _row(suite: Suite, question: Question, how: str, samples: int) -> Row:
    about = json.dumps(question.about, sort_keys=True)
    return {
        "question": _name(suite.name, question, about, how),
        "suite": suite.name,
        "task": question.task,
        "prompt": question.prompt,
        "about": about,
        "given": question.given,
        "asks": suite.asks,
        "evidence": suite.evidence,
        "how": how,
        "samples": samples,
    }


def _meant(asked: Asked) -> dict[str, Any]:
    told = asdict(asked) | {"prompts": _digest(asked.prompts), "rewriter": asked.rewriter and asked.rewriter.name}
    return {name: value for name, value in told.items() if name != "rewriter" or value}


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
