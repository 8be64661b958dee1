"""How sure a score is: intervals, two checkpoints on the same answers, and what a gate says of them. Not a stage.

Answers to one question are no independent samples, so questions are drawn, with all of their answers; within each task,
since a suite fixes how many questions a task has. A question of several tasks (a document has losses of its text and of
its picture) is drawn once, with all of them, among those of the same tasks. Intervals are those of the percentiles of
the draws (Efron 1979; Davison and Hinkley 1997, section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infra.types import UserError
from stages.evaluate.suite import Judged

Scores = Callable[[Sequence[Judged]], Mapping[str, float]]
"""`Suite.scores`, after `Suite.settled`."""
Outcome = Literal["pass", "fail", "inconclusive"]

LEVEL, RESAMPLES = 0.95, 1000
LEAST_QUESTIONS = 10
"""Under so many questions an interval is too short by much: nothing is concluded from it."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and where it lies in `level` of the draws."""

    value: float
    low: float
    high: float
    num_questions: int
    draws: NDArray[np.float64] = field(repr=False, compare=False)
    """The number in each draw; not a number where a draw had nothing to give it."""

    def turned(self) -> Interval:
        """Of the number's negative."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low, draws=-self.draws)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on the same answers."""

    new: Mapping[str, Interval]
    """Scores of the newer one,"""
    change: Mapping[str, Interval]
    """and by how much they went up (new less old), answer by answer."""
    missing: float
    """Share of the answers that only one of the two has a verdict on; they are left out."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a score must keep to; one of `floor` and `max_drop`, or both.

    floor     the score itself is at least this: fail where the whole interval is under it, pass where none of it is
    max_drop  it fell by no more than this since the old checkpoint, on the same answers: fail where the whole interval
              of the change is below -max_drop, pass where none of it is

    What is neither is inconclusive, and so is what is missing. A max_drop of 0 passes next to nothing but equal
    answers: give what the suite can tell apart. Where lower is better, floor is a ceiling, and a drop is a rise.
    """

    score: str
    floor: float | None = None
    max_drop: float | None = None
    higher_is_better: bool = True
    max_missing: float = 0.0
    """Share of the answers that may lack a verdict on one side."""

    def __post_init__(self) -> None:
        if self.floor is None and self.max_drop is None:
            raise UserError(f"the gate of {self.score} asks for nothing: give floor, max_drop or both")
        if self.max_drop is not None and self.max_drop < 0:
            raise UserError(f"max_drop of {self.score} is {self.max_drop}: give 0 or more, in the score's own unit")


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What became of a gate."""

    gate: Gate
    outcome: Outcome
    reason: str
    p_fail: float = 1.0
    """One-sided: how likely draws as bad as these are of a checkpoint that just keeps to the gate."""


@dataclass(frozen=True)
class _Draws:
    """Draws of questions within their tasks, the same for whichever checkpoint answered them."""

    tasks: Mapping[tuple[str, ...], list[str]]
    """Questions by the tasks that they have."""
    resamples: int
    seed: int

    def __iter__(self) -> Iterator[list[str]]:
        """Names of questions, some twice."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            yield [names[at] for names in self.tasks.values() for at in rng.integers(0, len(names), len(names))]

    @staticmethod
    def of(judged: Sequence[Judged], resamples: int, seed: int) -> _Draws:
        """In order of their names, so that the order of the verdicts does not matter."""
        tasks: dict[str, set[str]] = {}
        for one in judged:
            tasks.setdefault(one.question, set()).add(one.task)
        alike: dict[tuple[str, ...], list[str]] = {}
        for question in sorted(tasks):
            alike.setdefault(tuple(sorted(tasks[question])), []).append(question)
        return _Draws({which: alike[which] for which in sorted(alike)}, resamples, seed)


class _Answers:
    """Verdicts by question; what is drawn twice counts as two questions."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        self._of: dict[str, list[list[Judged]]] = {}
        for one in sorted(judged, key=lambda one: (one.question, one.index, one.task)):
            self._of.setdefault(one.question, [[]])[0].append(one)

    def drawn(self, names: Sequence[str]) -> list[Judged]:
        """All verdicts on these questions."""
        seen: dict[str, int] = {}
        found: list[Judged] = []
        for name in names:
            copies, times = self._of[name], seen.get(name, 0)
            if times == len(copies):
                copies.append([replace(one, question=f"{name} (again {times})") for one in copies[0]])
            found += copies[times]
            seen[name] = times + 1
        return found


def intervals(
    scores: Scores, judged: Sequence[Judged], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, Interval]:
    """Every score of a checkpoint with its interval."""
    answers, draws = _Answers(judged), _Draws.of(judged, resamples, seed)
    table = [scores(answers.drawn(names)) for names in draws]
    return _intervals(scores(judged), table, level, sum(map(len, draws.tasks.values())))


def compared(
    scores: Scores,
    old: Sequence[Judged],
    new: Sequence[Judged],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Two checkpoints on the answers that both have a verdict on: the same (question, index).

    Both are drawn together, so what makes a question hard for both cancels: the interval is tighter than that of two
    checkpoints drawn apart.
    """
    ours, theirs = ({(one.question, one.index) for one in some} for some in (new, old))
    both, either = ours & theirs, ours | theirs
    if not both:
        return Comparison(new={}, change={}, missing=1.0)
    kept_new, kept_old = ([one for one in some if (one.question, one.index) in both] for some in (new, old))
    draws = _Draws.of(kept_new, resamples, seed)
    answers_new, answers_old = _Answers(kept_new), _Answers(kept_old)
    table_new, table_change = [], []
    for names in draws:
        now = scores(answers_new.drawn(names))
        table_new.append(now)
        table_change.append(_less(now, scores(answers_old.drawn(names))))
    now, num_questions = scores(kept_new), sum(map(len, draws.tasks.values()))
    return Comparison(
        new=_intervals(now, table_new, level, num_questions),
        change=_intervals(_less(now, scores(kept_old)), table_change, level, num_questions),
        missing=1 - len(both) / len(either),
    )


def alone(scores: Scores, judged: Sequence[Judged], **how: int) -> Comparison:
    """A checkpoint with nothing to compare it with: gates on `max_drop` are inconclusive, `floor` is asked."""
    return Comparison(new=intervals(scores, judged, **how), change={}, missing=0.0)


def ruled(gates: Sequence[tuple[Gate, Comparison]], level: float = LEVEL) -> list[Ruling]:
    """What becomes of the gates, each with the comparison that its score is in.

    That all must pass needs no correction: one that does not is enough. That one fails does, since of many gates some
    fail by chance: a gate fails only where Holm's procedure (1979) over all of them rejects it too, at the one-sided
    (1 - level) / 2; else it is inconclusive.
    """
    found = [_ruled(gate, comparison) for gate, comparison in gates]
    rejected = holm([one.p_fail for one in found], (1 - level) / 2)
    return [
        replace(one, outcome="inconclusive", reason=f"{one.reason}, which may be chance among {len(found)} gates")
        if one.outcome == "fail" and not sure
        else one
        for one, sure in zip(found, rejected, strict=True)
    ]


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses fall, with the chance that any falls wrongly kept under alpha: from the smallest p on, the k-th
    of m against alpha / (m - k + 1), up to the first that stands (Holm 1979)."""
    rejected = [False] * len(p_values)
    for done, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not p_values[at] <= alpha / (len(p_values) - done):
            break
        rejected[at] = True
    return rejected


def _ruled(gate: Gate, comparison: Comparison) -> Ruling:
    """The worse of what `floor` and `max_drop` say."""
    if comparison.missing > gate.max_missing:
        share = f"{comparison.missing:.1%} of the answers have a verdict on one side only"
        return Ruling(gate=gate, outcome="inconclusive", reason=f"{share}, allowed are {gate.max_missing:.1%}")
    rulings: list[Ruling] = []
    if gate.floor is not None:
        rulings.append(_held(gate, comparison.new.get(gate.score), gate.floor, "it"))
    if gate.max_drop is not None:
        bound = -gate.max_drop if gate.higher_is_better else gate.max_drop
        rulings.append(_held(gate, comparison.change.get(gate.score), bound, "its change"))
    order = ("fail", "inconclusive", "pass")
    return min(rulings, key=lambda one: (order.index(one.outcome), one.p_fail))


def _held(gate: Gate, found: Interval | None, bound: float, what: str) -> Ruling:
    """Whether an interval lies on the good side of a bound, or on the bad one."""
    if found is None or not np.isfinite([found.value, found.low, found.high]).all():
        return Ruling(
            gate=gate, outcome="inconclusive", reason=f"{what} is not known: it was not measured on both sides"
        )
    if found.num_questions < LEAST_QUESTIONS:
        few = f"{found.num_questions} questions tell too little, give {LEAST_QUESTIONS} or more"
        return Ruling(gate=gate, outcome="inconclusive", reason=few)
    said = f"{what} is {found.value:.4g} ({found.low:.4g} to {found.high:.4g}) against {bound:.4g}"
    turned, bound = (found, bound) if gate.higher_is_better else (found.turned(), -bound)
    draws = turned.draws[np.isfinite(turned.draws)]
    p_fail = (1 + int((draws >= bound).sum())) / (1 + len(draws))
    if turned.high < bound:
        return Ruling(gate=gate, outcome="fail", reason=said, p_fail=p_fail)
    return Ruling(gate=gate, outcome="pass" if turned.low >= bound else "inconclusive", reason=said, p_fail=p_fail)


def _less(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: value - other[name] for name, value in one.items() if name in other}


def _intervals(
    values: Mapping[str, float], table: Sequence[Mapping[str, float]], level: float, num_questions: int
) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for name, value in values.items():
        draws = np.array([row.get(name, np.nan) for row in table], np.float64)
        known = draws[np.isfinite(draws)]
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (np.nan, np.nan)
        found[name] = Interval(
            value=float(value), low=float(low), high=float(high), num_questions=num_questions, draws=draws
        )
    return found
