"""Pairs are blind and the same for all, votes are read back or refused, strengths and kappas are the textbook's."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from infra.types import UserError
from stages.evaluate import preference
from stages.evaluate.preference import Pair, Vote, agreement, cohen, fleiss, pairs, ranked, sealed, strengths, votes_of

ANSWERS = {"a" * 64: [("q1", 0), ("q1", 1), ("q2", 0)], "b" * 64: [("q1", 0), ("q2", 0)], "c" * 64: [("q2", 0)]}
LABELS = {name: f"run step {i}" for i, name in enumerate(ANSWERS)}


def test_every_two_checkpoints_meet_once_on_every_answer_that_both_have() -> None:
    found = pairs(ANSWERS, seed=3)
    met = [(*sorted(pair.sides), pair.question, pair.index) for pair in found]
    a, b, c = ANSWERS
    assert sorted(met) == [(a, b, "q1", 0), (a, b, "q2", 0), (a, c, "q2", 0), (b, c, "q2", 0)]
    assert len({pair.key for pair in found}) == 4
    assert pairs(dict(reversed(ANSWERS.items())), seed=3) == found and pairs(ANSWERS, 3, limit=2) == found[:2]
    many = pairs({name: [(f"q{i}", 0) for i in range(400)] for name in (a, b)}, seed=0)
    on_the_left = sum(pair.sides[0] == a for pair in many)
    assert 150 < on_the_left < 250 and many != pairs({n: [(f"q{i}", 0) for i in range(400)] for n in (a, b)}, seed=1)
    assert not any(name in pair.key for pair in many for name in ANSWERS)


def saved(shown: list[Pair], votes: dict[str, str], rater: str = "ann", **more: Any) -> bytes:
    told = {"format": preference.VOTES_FORMAT, "rater": rater, "sealed": sealed(shown, LABELS), "votes": votes}
    return json.dumps(told | more).encode()


def test_votes_are_read_back_whichever_side_somebody_stood_on() -> None:
    shown = pairs(ANSWERS, seed=3)
    names = list(ANSWERS)
    sides = {
        pair.key: "tie" if pair.question == "q1" else "left" if pair.sides[0] == min(pair.sides) else "right"
        for pair in shown
    }
    votes, labels = votes_of({"one.json": saved(shown, sides), "two.json": saved(shown, sides, rater=" ")})
    assert labels == LABELS and {vote.rater for vote in votes} == {"ann", "two.json"}
    assert [vote.choice for vote in votes] == ["tie" if vote.question == "q1" else "first" for vote in votes]
    found = ranked(votes, resamples=200)
    assert [one.checkpoint for one in found] == names
    assert [(one.wins, one.ties, one.losses) for one in found] == [(4, 2, 0), (2, 2, 2), (0, 0, 4)]
    assert all(math.isfinite(one.low) and one.low - 1e-9 <= one.value <= one.high + 1e-9 for one in found)
    assert agreement(votes) == ("Cohen's kappa", 1.0, 4)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda shown: saved(shown, {"0" * 16: "left"}), "votes on pair 0{16}, which its page does not have"),
        (lambda shown: saved(shown, {shown[0].key: "up"}), "a vote is left, right or tie"),
        (lambda shown: saved(shown, {}), "holds no votes: open the page"),
        (lambda shown: b"{}", "give the JSON that the page"),
        (lambda shown: b"\xff", "give the JSON that the page"),
        (lambda shown: saved(shown, {}, sealed="nothing"), "give the JSON that the page"),
        (lambda shown: saved(shown, {}, format="plait votes 0"), "another version's page"),
    ],
)
def test_votes_that_cannot_be_used_are_one_sentence(made: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        votes_of({"v.json": made(pairs(ANSWERS, seed=0))})
    assert "\n" not in str(caught.value)


def test_nobody_votes_twice() -> None:
    shown = pairs(ANSWERS, seed=0)
    data = saved(shown, {shown[0].key: "tie"})
    with pytest.raises(UserError, match=r"twice, again in b\.json"):
        votes_of({"a.json": data, "b.json": data})


def simulated(theta: np.ndarray, count: int, seed: int, ties: float = 0.1) -> list[Vote]:
    """Votes of the model itself, one in ten a tie."""
    rng = np.random.default_rng(seed)
    votes: list[Vote] = []
    for number in range(count):
        one, other = sorted(rng.choice(len(theta), 2, replace=False))
        wins = rng.random() < 1 / (1 + math.exp(theta[other] - theta[one]))
        choice = "tie" if rng.random() < ties else "first" if wins else "second"
        where = {"rater": "r", "pair": str(number), "question": f"q{number % 50}", "side": "tie"}
        votes.append(Vote(**where, checkpoints=(f"m{one}", f"m{other}"), choice=choice))
    return votes


def test_strengths_recover_the_order_and_are_the_likelihoods_maximum() -> None:
    theta = np.array([0.9, -0.6, 0.2, -1.1, 0.6])
    names = [f"m{i}" for i in range(5)]
    votes = simulated(theta, 3000, seed=0)
    wins = preference.tallied(votes, names)
    assert wins.sum() == 3000
    found = strengths(wins)
    assert np.argsort(found).tolist() == np.argsort(theta).tolist() and abs(found.mean()) < 1e-12

    def less_likely(free: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log-likelihood of Bradley and Terry, the last strength held at 0, and its gradient."""
        all_of_them = np.append(free, 0.0)
        gap = all_of_them[:, None] - all_of_them[None, :]
        p = 1 / (1 + np.exp(-gap))
        pull = (wins * (1 - p)).sum(axis=1) - (wins.T * p).sum(axis=1)
        return float((wins * np.log1p(np.exp(-gap))).sum()), -pull[:-1]

    direct = np.append(minimize(less_likely, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9}).x, 0.0)
    assert found == pytest.approx(direct - direct.mean(), abs=1e-6)
    best = ranked(votes, resamples=300)
    assert [one.checkpoint for one in best] == ["m0", "m4", "m2", "m1", "m3"]
    assert {one.checkpoint: one.value for one in best} == pytest.approx(dict(zip(names, found, strict=True)), abs=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Without ties, which pull strengths together: 60 intervals of 95 % in 20 simulations of 50 questions."""
    theta = np.array([0.8, -0.3, -0.5])
    held = [
        one.low < theta[int(one.checkpoint[1])] < one.high
        for seed in range(20)
        for one in ranked(simulated(theta, 600, seed, ties=0.0), resamples=200)
    ]
    assert len(held) == 60 and sum(held) >= 52


def test_two_checkpoints_by_hand_and_one_that_always_wins() -> None:
    # three to one: the odds are 3, half of their logarithm each way
    assert strengths(np.array([[0.0, 3.0], [1.0, 0.0]])) == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert strengths(np.array([[0.0, 2.5], [2.5, 0.0]])) == pytest.approx([0, 0])
    always = np.array([[0.0, 4.0], [0.0, 0.0]])
    with pytest.raises(UserError, match="no strength fits"):
        strengths(always)
    assert strengths(always, imaginary_ties=1.0) == pytest.approx([math.log(9) / 2, -math.log(9) / 2])
    both = strengths(np.stack([always, always.T]), imaginary_ties=1.0)
    assert both[0] == pytest.approx(-both[1])


def test_cohens_kappa_of_the_textbook() -> None:
    """20 and 15 of 50 grants agreed on, 5 and 10 not: p_o = 0.7, p_e = 0.5, kappa 0.4."""
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen(one, other) == pytest.approx(0.4)
    assert cohen(["a", "b"], ["b", "a"]) == pytest.approx(-1) and math.isnan(cohen(["a"], ["a"]))


def test_fleiss_kappa_of_the_textbook() -> None:
    """Ten things, fourteen people, five categories: P mean 0.378, P_e 0.213, kappa 0.210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss(np.array(table)) == pytest.approx(0.210, abs=5e-4)


def test_agreement_is_of_the_pairs_that_all_saw() -> None:
    shown = pairs(ANSWERS, seed=0)
    one = {pair.key: "left" for pair in shown}
    assert agreement(votes_of({"a": saved(shown, one, "a")})[0]) is None
    files = {name: saved(shown, one, name) for name in "abc"} | {"d": saved(shown, {shown[0].key: "tie"}, "d")}
    name, value, count = agreement(votes_of(files)[0]) or ("", 0.0, 0)
    # one pair, three for one side and one tie: P = (9 + 1 - 4) / 12 = 1/2, P_e = 9/16 + 1/16 = 5/8
    assert (name, count) == ("Fleiss' kappa", 1) and value == pytest.approx((0.5 - 0.625) / (1 - 0.625))


def test_who_stands_where_is_in_the_seal_alone() -> None:
    shown = pairs(ANSWERS, seed=0)
    seal = sealed(shown, LABELS)
    assert not any(name in seal for name in (*ANSWERS, *LABELS.values()))
    assert json.loads(base64.b64decode(seal))["labels"] == LABELS
