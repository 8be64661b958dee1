"""Which of two answers people prefer: blind pairs, votes read back, strengths of checkpoints, agreement. Not a stage.

Nothing here draws, shows or stores: pairs are named by what they are of, and all else is a function of the votes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from infra.types import RunError, UserError
from stages.evaluate.statistics import LEVEL, RESAMPLES

PAGE_FORMAT, VOTES_FORMAT = "plait pairs 1", "plait votes 1"
Side = Literal["left", "right", "tie"]
Choice = Literal["first", "second", "tie"]
"""Of the two checkpoints of a pair in the order of their names, whichever side they stood on."""
IMAGINARY_TIES = 1.0
"""Of every two checkpoints, beside their votes: without any the strength of one that always wins is infinite."""
_SETTLED, _MOST_ROUNDS = 1e-12, 100_000
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to the same question, drawn from the same numbers."""

    key: str
    """Names it, and tells nothing of who stands where."""
    question: str
    index: int
    sides: tuple[str, str]
    """Checkpoints, left and right."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What one person said of one pair."""

    rater: str
    pair: str
    question: str
    checkpoints: tuple[str, str]
    """In the order of their names."""
    choice: Choice
    side: Side


@dataclass(frozen=True, kw_only=True)
class Strength:
    """A checkpoint among those that it was compared with."""

    checkpoint: str
    value: float
    """Logarithm of the Bradley-Terry strength; their mean is 0."""
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def pairs(answers: Mapping[str, Collection[tuple[str, int]]], seed: int, limit: int | None = None) -> list[Pair]:
    """Every two checkpoints on every answer (question, index) that both have, in an order and on sides that the seed
    decides, whatever order they were given in; the first `limit` of them."""
    found = [
        _pair(one, other, question, index, seed)
        for one, other in combinations(sorted(answers), 2)
        for question, index in set(answers[one]) & set(answers[other])
    ]
    return sorted(found, key=lambda pair: pair.key)[:limit]


def _pair(one: str, other: str, question: str, index: int, seed: int) -> Pair:
    digest = hashlib.sha256(f"{seed} {one} {other} {question} {index}".encode()).hexdigest()
    sides = (other, one) if int(digest[-1], 16) % 2 else (one, other)
    return Pair(key=digest[:16], question=question, index=index, sides=sides)


def sealed(shown: Sequence[Pair], labels: Mapping[str, str]) -> str:
    """Who stands where, for the page and the votes: no secret (base64), but nobody reads it by accident."""
    told = {
        "format": PAGE_FORMAT,
        "labels": {name: labels[name] for name in sorted({side for pair in shown for side in pair.sides})},
        "pairs": {pair.key: [pair.question, *pair.sides] for pair in shown},
    }
    return base64.b64encode(json.dumps(told, sort_keys=True).encode()).decode()


def votes_of(documents: Mapping[str, bytes]) -> tuple[list[Vote], dict[str, str]]:
    """Votes of files by their names, and what their checkpoints are called. A person who gave no name is called as the
    file."""
    votes: list[Vote] = []
    labels: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for file, data in documents.items():
        rater, told, said = _read(file, data)
        labels |= told["labels"]
        for key, side in said.items():
            if key not in told["pairs"]:
                raise UserError(f"{file} votes on pair {key}, which its page does not have: give the file as the page saved it")  # fmt: skip  # noqa: E501
            if side not in get_args(Side):
                raise UserError(f"{file} says {side!r} of pair {key}: a vote is left, right or tie")
            if (rater, key) in seen:
                raise UserError(f"{rater!r} votes on pair {key} twice, again in {file}: give one file of each person")
            seen.add((rater, key))
            votes.append(_vote(rater, key, told["pairs"][key], side))
    if not votes:
        raise UserError(f"{', '.join(documents) or 'nothing'} holds no votes: open the page, press 1, 2 or 0, and save")
    return votes, labels


def _read(file: str, data: bytes) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Who voted, what the page held, what was said."""
    try:
        told = json.loads(data)
        page = json.loads(base64.b64decode(told["sealed"], validate=True))
        good = (told["format"], page["format"]) == (VOTES_FORMAT, PAGE_FORMAT)
        rater, said = str(told["rater"]).strip() or file, dict(told["votes"])
        page = {"labels": dict(page["labels"]), "pairs": {key: tuple(of) for key, of in page["pairs"].items()}}
        good = good and all(len(of) == 3 for of in page["pairs"].values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} holds no votes: give the JSON that the page of `plait compare` saves") from error
    if not good:
        raise UserError(f"{file} was saved by another version's page: its format must be {VOTES_FORMAT!r}")
    return rater, page, said


def _vote(rater: str, key: str, of: tuple[str, str, str], side: Side) -> Vote:
    question, left, right = of
    first, second = sorted((left, right))
    preferred = {"left": left, "right": right}.get(side)
    choice: Choice = "tie" if preferred is None else "first" if preferred == first else "second"
    return Vote(rater=rater, pair=key, question=question, checkpoints=(first, second), choice=choice, side=side)


def tallied(votes: Sequence[Vote], checkpoints: Sequence[str]) -> Floats:
    """How often one was preferred to the other [K, K], a tie half for each: many ties pull strengths together."""
    at = {name: i for i, name in enumerate(checkpoints)}
    wins = np.zeros((len(at), len(at)))
    for vote in votes:
        first, second = (at[name] for name in vote.checkpoints)
        share = {"first": 1.0, "second": 0.0, "tie": 0.5}[vote.choice]
        wins[first, second] += share
        wins[second, first] += 1 - share
    return wins


def strengths(wins: Floats, imaginary_ties: float = 0.0) -> Floats:
    """Logarithms of Bradley and Terry's strengths (1952) of tables of wins [..., K, K], of mean 0.

    P(i over j) = p_i / (p_i + p_j). The likelihood's maximum by Hunter's MM (2004, Annals of Statistics 32, equation
    3): p_i <- w_i / sum_j n_ij / (p_i + p_j), w_i the wins of i, n_ij the comparisons of i and j. It exists where no
    group of them was always preferred to the rest (Ford 1957); imaginary ties, added to every two, make sure of it.
    """
    count = wins.shape[-1]
    counted = wins + imaginary_ties / 2 * (1 - np.eye(count))
    if not _is_connected(counted):
        raise UserError("some checkpoints were always preferred to the others: no strength fits, add imaginary ties")
    won, met = counted.sum(axis=-1), counted + np.swapaxes(counted, -1, -2)
    found = np.zeros_like(won)
    for _ in range(_MOST_ROUNDS):
        p = np.exp(found)
        step = np.log(won / (met / (p[..., :, None] + p[..., None, :])).sum(axis=-1))
        step -= step.mean(axis=-1, keepdims=True)
        if np.abs(step - found).max() < _SETTLED:
            return step
        found = step
    raise RunError("the strengths do not settle: the checkpoints were hardly compared with each other, add votes")


def _is_connected(wins: Floats) -> bool:
    """Whether wins lead from each to each other, in every table."""
    reach = (wins > 0) | np.eye(wins.shape[-1], dtype=bool)
    for _ in range(wins.shape[-1]):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    return bool(reach.all())


def ranked(votes: Sequence[Vote], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> list[Strength]:
    """The strongest first, with intervals: percentiles of draws of questions, each with all its votes, since neither
    two people on one pair nor two answers to one question are independent."""
    names = sorted({name for vote in votes for name in vote.checkpoints})
    by_question: dict[str, list[Vote]] = {}
    for vote in votes:
        by_question.setdefault(vote.question, []).append(vote)
    tables = np.stack([tallied(by_question[question], names) for question in sorted(by_question)])
    drawn = np.random.default_rng(seed).multinomial(len(tables), np.full(len(tables), 1 / len(tables)), resamples)
    values = strengths(tables.sum(axis=0), IMAGINARY_TIES)
    draws = strengths(np.tensordot(drawn.astype(np.float64), tables, 1), IMAGINARY_TIES)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = [
        Strength(
            checkpoint=name, value=float(values[i]), low=float(low[i]), high=float(high[i]), **_counts(votes, name)
        )
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda one: (-one.value, one.checkpoint))


def _counts(votes: Sequence[Vote], name: str) -> dict[str, int]:
    told = [vote for vote in votes if name in vote.checkpoints]
    ties = sum(vote.choice == "tie" for vote in told)
    wins = sum(vote.choice == ("first" if vote.checkpoints[0] == name else "second") for vote in told)
    return {"wins": wins, "ties": ties, "losses": len(told) - wins - ties}


def cohen(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa (1960) of two people on the same things: (p_o - p_e) / (1 - p_e), p_o how often they agree, p_e how
    often they would by chance, each keeping to their own shares. Not a number where both always say the same word."""
    agree = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    chance = sum((one.count(word) / len(one)) * (other.count(word) / len(other)) for word in {*one, *other})
    return (agree - chance) / (1 - chance) if chance < 1 else float("nan")


def fleiss(table: NDArray[Any]) -> float:
    """Fleiss' kappa (1971) of how many of n people put each thing (a row) in each category (a column): the mean of
    (sum_j n_ij^2 - n) / (n (n - 1)) against sum_j p_j^2, p_j the categories' shares of all."""
    people = int(table[0].sum())
    agree = float(((table.astype(np.float64) ** 2).sum(axis=1) - people).mean() / (people * (people - 1)))
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return (agree - chance) / (1 - chance) if chance < 1 else float("nan")


def agreement(votes: Sequence[Vote]) -> tuple[str, float, int] | None:
    """Name and value of the kappa of all who voted, and on how many pairs: those that all of them saw. None of one
    person, and where no pair was seen by all."""
    said: dict[str, dict[str, str]] = {}
    for vote in votes:
        said.setdefault(vote.pair, {})[vote.rater] = vote.choice
    raters = sorted({vote.rater for vote in votes})
    whole = [said[pair] for pair in sorted(said) if len(said[pair]) == len(raters)]
    if len(raters) < 2 or not whole:
        return None
    if len(raters) == 2:
        one, other = ([told[rater] for told in whole] for rater in raters)
        return "Cohen's kappa", cohen(one, other), len(whole)
    table = np.array([[list(told.values()).count(choice) for choice in get_args(Choice)] for told in whole])
    return "Fleiss' kappa", fleiss(table), len(whole)
