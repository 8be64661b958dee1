"""The benchmarks still measure what they say, at toy sizes (those that need Ray are run by hand)."""

import dataclasses

import pytest

from benchmarks import commit, planning
from benchmarks.measure import in_turn, row


def test_the_steps_of_a_commit_add_up_to_no_more_than_the_whole(tmp_path):
    steps, wholes, puts = commit.measure(tmp_path, num_shards=3, runs=2)
    assert {len(found) for found in steps.values()} == {2} and len(wholes) == len(puts) == 2
    assert {"commit and verify files", "read keys: unique, digest", "ledger: put documents"} <= set(steps)
    for i, whole in enumerate(wholes):
        assert 0 < sum(found[i] for found in steps.values()) <= whole


def test_planning_finds_as_many_new_keys_as_its_peer(capsys):
    assert planning.measure(1000, 1, with_peer=True) > 0
    assert "ratio" in capsys.readouterr().out


def test_contestants_take_turns_and_the_ratio_is_that_of_the_medians():
    seen = []
    figures = in_turn({"a": lambda i: seen.append("a") or 2.0 * (i + 1), "b": lambda i: seen.append("b") or 1.0}, 3)
    assert seen == list("abababab")
    assert figures == {"a": [4.0, 6.0, 8.0], "b": [1.0, 1.0, 1.0]}
    assert row("a", figures["a"], "s", figures["b"]).endswith("ratio 6.00")


@pytest.mark.parametrize("figures", [[1.0, 3.0, 2.0], [2.0]])
def test_the_figure_of_a_row_is_the_median(figures):
    assert row("x", figures, "s").split()[1] == "2"


def test_all_ways_to_pack_train_on_the_same_samples():
    from benchmarks import packing_steps

    documents = packing_steps.samples(60)
    lengths = [sum(n for n, _ in packing_steps.spans(one.segments)) for one in documents]
    for way, packs in packing_steps.ways(documents).items():
        assert sorted(n for pack in packs for n in pack) == list(range(60)), way
        most = max(sum(lengths[n] for n in pack) for pack in packs)
        assert way == "padding" or most <= (2 if way == "ours" else 1) * packing_steps.FIXED
    padded = packing_steps.batch(documents[:4], padded=True)
    assert set(padded.lengths) == {max(lengths[:4])}
    plain = packing_steps.batch(documents[:4], padded=False)
    assert float(padded.weights_T.sum()) == pytest.approx(float(plain.weights_T.sum()))


def toy_training(folder):
    """A toy model, and a root with its packs in a folder."""
    from infra.commits import publish_full
    from infra.folder_bucket import LocalBucket
    from infra.store import Store
    from stages.train.train import Model
    from tests.stages import test_pack_recipes as recipes

    made, parts = recipes.tables("scales"), recipes.PARTS["scales"]
    rows, _ = recipes.pack(folder, made, recipes.stage(recipes.LAYOUTS["scales"], flops_per_pack=3e7))
    rows = [{"key": bytes([n]) * 16, "label": "pack"} | row for n, row in enumerate(rows)]
    store, schema = Store(LocalBucket(folder / "root")), recipes.Packs.schema
    publish_full(store, "packs", schema, list(store.stage("packs", rows, schema).fragments), "key.1", 0)
    return Model(trunk=recipes.SHAPE, parts=parts, rope_shares=(2, 1, 1), steps=9, global_batch=2)


def test_the_loader_and_the_trainer_are_measured_on_the_same_packs_of_a_root(tmp_path):
    from benchmarks import loader

    stage = toy_training(tmp_path)
    trainer = loader.Trainer(stage, loader.packs_of(str(tmp_path / "root")))
    figures = loader.measure(trainer, runs=2, steps=3)
    assert {len(found) for found in figures.values()} == {2}
    assert all(0 <= share <= 1 for name in ("stall share", "stall share in advance") for share in figures[name])
    assert min(rate for name in ("loader", "trainer", "together") for rate in figures[name]) > 0


def test_what_a_thousand_ranks_stand_on_is_measured(tmp_path):
    from benchmarks.scale_measure import measured

    found = vars(measured(4, 50, 2048, tmp_path))
    assert min(value for name, value in found.items() if name != "draw_s") > 0
    assert found["stored_bytes"] < found["arrow_bytes"] < found["row_bytes"]


def test_nobody_waits_where_steps_in_advance_outlast_the_slowest_read():
    from argparse import Namespace

    from benchmarks.scale_waits import stalls

    given = Namespace(ranks=64, latency_steps=300, latency=[0.05, 0.5, 3.0, 30.0])
    late = [stalls(given, 5.0, ahead, 0.1, 4.0)[0] for ahead in (1, 2, 8)]
    assert late[0] > late[1] > late[2] == 0


def test_drawing_is_measured_with_and_without_a_cache_and_by_scales(capsys):
    from benchmarks import sampling

    ratios = sampling.measure(1, 64, 16, tokens=6, probes=2, sides=[3], runs=1)
    assert set(ratios) == {"cached", "nextflow 3", "nextflow-passes 3", "the paper 3"} and min(ratios.values()) > 0
    assert capsys.readouterr().out.count("target") == 4


@pytest.mark.slow
def test_checkpoints_are_measured_on_trainings_that_do_the_same_work(tmp_path, capsys):
    from benchmarks import checkpoints

    stage = toy_training(tmp_path)
    stage = dataclasses.replace(stage, parts=dataclasses.replace(stage.parts, code_vectors="drawn", code_head="shared"))
    plan = checkpoints.Plan(str(tmp_path / "root"), stage, runs=1, steps=10, every=4, folder=tmp_path)
    (ways,) = checkpoints.measure(plan, world=1)
    assert [len(run.saves) for run in ways.values()] == [1, 6, 6, 6]  # of 21 steps, ten of them warm-up
    for run in ways.values():
        assert all(save.held_s > 0 and save.written > save.began for save in run.saves) and run.save_bytes > 0
    checkpoints.report(plan, 1, [ways])
    assert capsys.readouterr().out.count("held, each") == 3


def test_every_endpoint_of_the_explorer_is_measured_beside_lance(tmp_path, capsys):
    from benchmarks import explorer

    explorer.plant(tmp_path / "root", 600)
    found = explorer.measure(tmp_path / "root", 600, runs=1)
    assert {"clips by a score", "one clip", "lineage of a raw file"} <= set(found)
    assert min(figure for figures in found.values() for figure in figures) > 0
    assert "MiB more" in capsys.readouterr().out
