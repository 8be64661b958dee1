"""Packing by metadata: every sample once, caps kept, the same whatever the order of the input, steps of even cost."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import packing as benchmark
from infra.types import UserError
from models.flops import TrunkShape
from stages import packing_plan, packing_report
from stages.packing import Budget, measures, plan, training_order

SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)


def places_of(names) -> np.ndarray:
    keys = b"".join(hashlib.blake2b(str(name).encode(), digest_size=16).digest() for name in names)
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def corpus(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, costs and lengths of a mix of short and long samples; a long one costs more a token."""
    lengths = np.minimum(2000, np.random.default_rng(seed).lognormal(4, 1.2, num)).astype(np.int64) + 1
    return places_of(range(num)), lengths * (1000.0 + lengths), lengths


def contents(found, places) -> list[tuple[int, bool, list[bytes]]]:
    return [
        (int(group), bool(lone), [places[row].tobytes() for row in rows])
        for rows, group, lone in zip(found.packs, found.groups, found.lone, strict=True)
    ]


SAMPLES = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 90)), max_size=80)


@settings(deadline=None, max_examples=150)
@given(SAMPLES, st.integers(1, 300), st.integers(1, 80), st.integers(1, 40), st.randoms())
def test_every_sample_once_caps_kept_and_the_order_of_the_input_is_nothing(samples, flops, room, one_in, random):
    costs = np.array([cost for cost, _ in samples], np.float64)
    tokens = np.array([size for _, size in samples], np.int64)
    places, budget = places_of(range(len(samples))), Budget(flops=flops, max_tokens=room, group_one_in=one_in)
    found = plan(places, costs, tokens, budget)
    assert sorted(row for rows in found.packs for row in rows) == list(range(len(samples)))
    over = (costs > flops) | (tokens > room)
    for rows, lone in zip(found.packs, found.lone, strict=True):
        assert len(rows) > 0 and [places[row].tobytes() for row in rows] == sorted(places[r].tobytes() for r in rows)
        if lone:
            assert len(rows) == 1 and over[rows[0]]
        else:
            assert costs[rows].sum() <= flops and tokens[rows].sum() <= room
    shuffled = np.array(random.sample(range(len(samples)), len(samples)), np.int64)
    again = plan(places[shuffled], costs[shuffled], tokens[shuffled], budget)
    assert contents(again, places[shuffled]) == contents(found, places)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 399), st.integers(0, 3))
def test_one_more_sample_changes_the_packs_of_one_group_only(new, seed):
    places, costs, tokens = corpus(400, seed)
    budget = Budget(flops=1e6, max_tokens=1500, group_one_in=32)
    kept = np.arange(400) != new
    after = plan(places, costs, tokens, budget)
    before = plan(places[kept], costs[kept], tokens[kept], budget)
    old = {tuple(names) for _, _, names in contents(before, places[kept])}
    changed = [group for group, _, names in contents(after, places) if tuple(names) not in old]
    # Two where the new sample begins a group: it takes the rest of the group before it along.
    assert 1 <= len(set(changed)) <= 2 and max(changed) - min(changed) <= 1
    begins = int.from_bytes(places[new].tobytes()[8:], "big") % 32 == 0
    assert begins or len(set(changed)) == 1


def test_pieces_of_one_place_stay_in_one_group_in_a_fixed_order():
    places = np.repeat(np.zeros((1, 16), np.uint8), 6, axis=0)
    tokens = np.arange(6, dtype=np.int64) + 1
    budget = Budget(flops=100, max_tokens=100, group_one_in=1)
    found = plan(places, tokens.astype(float), tokens, budget)
    assert [rows.tolist() for rows in found.packs] == [[0, 1, 2, 3, 4, 5]]
    backwards = plan(places, tokens[::-1].astype(float), tokens[::-1], budget)
    assert [rows.tolist() for rows in backwards.packs] == [[5, 4, 3, 2, 1, 0]]


def test_packs_of_a_group_cost_the_same_and_none_is_a_remainder():
    places, costs, tokens = corpus(4000)
    found = plan(places, costs, tokens, Budget(flops=6.1e6, max_tokens=10_000, group_one_in=10**9))
    loads = found.sums(costs)
    assert found.groups.tolist() == [0] * len(found.packs) and not found.lone.any()
    assert loads.max() / loads.min() < 1.002 and loads.mean() > 0.99 * 6.1e6


@pytest.mark.parametrize("share", [0.51, 0.34, 0.31])
def test_samples_of_an_awkward_size_take_few_tries(share, monkeypatch):
    tries = []
    one_try = packing_plan._longest_first
    monkeypatch.setattr(packing_plan, "_longest_first", lambda *given: tries.append(given[2]) or one_try(*given))
    num = 3000
    found = plan(
        places_of(range(num)),
        np.full(num, 1.0),
        np.full(num, int(1000 * share)),
        Budget(flops=1e9, max_tokens=1000, group_one_in=10**9),
    )
    least = -(-num // int(1 / share))
    assert least <= len(found.packs) <= 1.01 * least and len(tries) <= 16


def test_no_samples_no_packs_and_a_budget_of_nothing_is_refused():
    budget = Budget(flops=1, max_tokens=1, group_one_in=1)
    found = plan(np.zeros((0, 16), np.uint8), np.zeros(0), np.zeros(0, np.int64), budget)
    assert found.packs == [] and len(found.groups) == len(found.lone) == 0
    orders, report = training_order(found, np.zeros((0, 16), np.uint8), np.zeros(0), 0, 4)
    assert len(orders) == 0 and report["num_steps"] == 0
    with pytest.raises(UserError, match="above 0"):
        Budget(flops=0.0, max_tokens=1, group_one_in=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 9), st.floats(2e4, 2e6), st.integers(-2, 5))
def test_the_order_is_a_permutation_keyed_by_the_seed_and_moves_are_bounded(num, batch, window, flops, seed):
    places, costs, tokens = corpus(num)
    found = plan(places, costs, tokens, Budget(flops=flops, max_tokens=1800, group_one_in=64))
    loads = found.sums(costs)
    orders, report = training_order(found, places, loads, seed, batch, window)
    assert sorted(orders) == list(range(len(loads)))
    assert report["num_steps"] == -(-len(loads) // batch)
    assert orders.tolist() == training_order(found, places, loads, seed, batch, window)[0].tolist()
    if not found.lone.any():
        assert report["moved_steps_max"] <= max(0, window - 1) and report["lone_steps_packs"] == 0
    if len(loads) > 20:
        assert orders.tolist() != training_order(found, places, loads, seed + 1, batch, window)[0].tolist()


def test_steps_are_even_for_any_world_size_and_lone_packs_share_steps():
    places, costs, tokens = corpus(20_000)
    budget = Budget(flops=1.7e6, max_tokens=1400, group_one_in=2000)
    found = plan(places, costs, tokens, budget)
    loads = found.sums(costs)
    orders, report = training_order(found, places, loads, 0, 16)
    in_order = np.empty(len(loads), np.int64)
    in_order[orders] = np.arange(len(loads))
    whole = in_order[: len(loads) // 16 * 16].reshape(-1, 16)
    for ranks in (2, 4, 8, 16):
        of_rank = loads[whole].reshape(len(whole), ranks, -1).sum(2)
        assert np.mean(of_rank.max(1) / of_rank.mean(1)) < 1.01
    lone_of_step = found.lone[whole].sum(1)
    assert found.lone.sum() > 16 and (lone_of_step == 16).sum() == found.lone.sum() // 16
    # What is left of the lone packs is in one step, not scattered.
    assert (lone_of_step > 0).sum() == -(-found.lone.sum() // 16) and report["lone_steps_packs"] == found.lone.sum()
    # Steps of lone packs are spread over training as lone packs are, and do not push the others far.
    lanes = np.flatnonzero(lone_of_step)
    assert np.diff(lanes, prepend=-1, append=len(whole)).max() < 4 * len(whole) / len(lanes)
    assert report["moved_steps_max"] <= 16 + 2 and report["lone_moved_steps_max"] < 20 * len(whole) / len(lanes)
    # What is random stays random: whole steps do not go from cheap to dear.
    steps = loads[whole].mean(1)
    assert abs(np.corrcoef(steps, np.arange(len(steps)))[0, 1]) < 0.3


def test_the_report_by_hand():
    places = np.zeros((4, 16), np.uint8)
    places[:, 15] = range(1, 5)  # a place of 0 would begin a group
    tokens = np.array([4, 1, 3, 2])
    costs = tokens * 1.0
    budget = Budget(flops=5, max_tokens=6, group_one_in=2**60)
    found = plan(places, costs, tokens, budget)
    assert [rows.tolist() for rows in found.packs] == [[0, 1], [2, 3]]
    orders, _ = training_order(found, places, found.sums(costs), 0, 2)
    shown = measures(
        found, costs, tokens, budget, places=places, orders=orders, global_batch=2, trunk=SHAPE, padding_batch=2
    )
    assert shown["imbalance"] == shown["fill"] == 1 and shown["idle"] == shown["dropped"] == 0
    assert shown["most_tokens"] == 5 and shown["carried_places_max"] == 0
    # First fit to 6 tokens in order of arrival: 4 + 1, 3 + 2. Padded: 4 + 4, 3 + 3 positions.
    assert shown["fixed_length/imbalance"] == shown["throughput_over_fixed_length"] == 1
    assert shown["pad_to_longest/padding_fraction"] == pytest.approx(1 - 10 / 14)
    assert shown["throughput_over_pad_to_longest"] > 1


def test_padding_costs_the_positions_and_pairs_that_are_added():
    from models.flops import causal_cost

    tokens = np.array([7, 3, 5])
    costs = np.array([causal_cost(SHAPE, 100, [n], n).train for n in tokens])
    found, share = packing_report.padded(costs, tokens, SHAPE, 2)
    expected = [causal_cost(SHAPE, 100, [7, 7], 10).train, causal_cost(SHAPE, 100, [5], 5).train]
    assert found.tolist() == expected and share == pytest.approx(1 - 15 / 19)


def test_the_benchmark_at_toy_size_is_even_and_under_its_bound(capsys):
    given = benchmark.mixes(3000)
    assert set(given) == {"mix", "stage 256", "stage 512", "stage 1024"}
    benchmark.compare("mix", given["mix"], 16)
    printed = capsys.readouterr().out
    assert printed.count("padding, batches of") == 5 and printed.count("ours, ") == 2 and "dropped 0" in printed
    assert benchmark.speed(3000, 1) > 0


@pytest.mark.parametrize(("scales", "level"), [(12, 900), (16, 3684), (18, 10_084)])
def test_pictures_of_the_benchmark_have_the_published_lengths(scales, level):
    places, _ = benchmark._picture(scales)
    assert places + 1 == level
