"""What an evaluation suite is: its questions, what it takes from a judge, and its scores. Not a stage.

Three steps, each a dataset of its own (generations, verdicts, scores), so that each can be run again alone:

    generate   a model answers every question: pictures, films or texts, or how likely it finds a document
    judge      evidence of each answer (what a detector sees, what a VQA model says, what is measured), and from it,
               by a pure function of the suite, one verdict
    aggregate  verdicts of a checkpoint to named scores: a pure function too, tested on published rows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Asks = Literal["pictures", "films", "texts"]
"""What a question asks for."""
Evidence = Literal["objects", "answers", "pixels", "words", "features"]
"""What a verdict rests on.

objects    a detector's: {"objects": [{"name", "colour", "box": [x0, y0, x1, y1], "score"}, ...], "size": [w, h]};
           boxes in pixels, y down, the surest first
answers    of a VQA model to `about["questions"]`: {"answers": [str, ...]}, in their order; beside them, where the
           judge knows, {"yes": [float, ...]}: how likely it finds a yes
pixels     the answer itself: {"frames": uint8 (T, H, W, 3)}, and "fps" of a film; nothing but arithmetic between
words      the answer itself: {"text": str}
features   of an encoder: {"image": float32 (D), "text": float32 (D) or None}
"""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt of a suite."""

    prompt: str
    """What the model is told; empty where `given` is all."""
    task: str
    """The group that it counts in, as GenEval's "position"."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the judge has to know, plain values only: clauses, a graph of questions, reference captions."""
    given: bytes | None = None
    """A picture (png) that the question is about."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge found of one answer."""

    score: float
    """Of this answer alone: 0 to 1, or the metric's own unit; not a number where only all of them give one."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of, plain values: for people, and for `Suite.scores`."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict with what it is of, as `Suite.scores` sees it."""

    question: str
    """Names the prompt: answers to one prompt are no independent samples."""
    task: str
    index: int
    """Which of the answers to the prompt."""
    verdict: Verdict
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Base of all suites; one file each. Its fields are settings."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    """Bumped when verdicts or scores mean something else: answers are judged again, not drawn again."""
    asks: ClassVar[Asks] = "pictures"
    evidence: ClassVar[Evidence]
    main: ClassVar[str]
    """The score that stands for the suite."""
    higher_is_better: ClassVar[bool] = True
    resampled: ClassVar[bool] = True
    """Whether drawing its questions anew gives intervals: not of a distance of distributions, which repeats push up."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """Its questions in their order; `prompts` is the file that the settings name, none: the suite's own."""
        raise NotImplementedError

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """The verdict on one answer; a pure function."""
        raise NotImplementedError

    def settled(self, judged: Sequence[Judged]) -> Sequence[Judged]:
        """What rests on all answers at once (how rare words are in all references), done once before `scores` is asked
        about draws of them."""
        return judged

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Named scores of one checkpoint; a pure function of the verdicts, whatever their order."""
        raise NotImplementedError
