"""Packing: no sample lost or cut, budgets kept, the same packs whatever the order of the input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.types import UserError
from models import flops, raster
from models.flops import TrunkShape
from models.layout import KINDS, Format, Layout
from models.raster import Marks
from models.tokenizers.codes import packed, unpacked
from models.tokenizers.text import ByteTokenizer
from stages.extract import Indices
from stages.pack import Packs
from tests.stages.fake_job import FakeJob, key_of, table_of

EMU3 = Layout(vision="codes", vision_weight=0.5)
SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
TEXTS = pa.schema([("text", pa.string()), ("held_out", pa.bool_())])
TEXT_TOKENIZER = ByteTokenizer()


def stage(**kwargs) -> Packs:
    return Packs(
        **{"layout": EMU3, "trunk": SHAPE, "flops_per_pack": 3e8, "max_tokens": 900, "max_text_tokens": 100} | kwargs
    )


def tables(pairs: list[tuple[int, int]], texts: list[int], held_out: set[int] = frozenset()) -> dict[str, pa.Table]:
    """Pairs of (caption length, grid side) and lengths of texts."""
    rng = np.random.default_rng(0)
    captions, indices = [], []
    for i, (length, side) in enumerate(pairs):
        frames = 2 if i % 5 == 4 else 1
        base = {"parents": [key_of("clip", i)], "held_out": i in held_out, "size": 8 * side}
        captions.append(base | {"text": "c" * length})
        ids = packed(rng.integers(32, size=frames * side * side), 32)
        grid = {"grids": [[frames, side, side]], "num_frames": frames, "height": 8 * side, "width": 8 * side}
        grid["fps"] = 4.0 if frames > 1 else None
        indices.append(base | grid | {"ids": ids, "codebook_size": 32, "tokenizer": "t"})
    words = [{"text": "".join(map(chr, rng.integers(97, 123, n))), "held_out": False} for n in texts]
    return {
        "captions": table_of(captions, TEXTS, "captions"),
        "indices": table_of(indices, Indices.schema, "indices"),
        "texts": table_of(words, TEXTS, "texts"),
    }


def documents(rows: list[dict]) -> list[list[int]]:
    """Tokens of every document of every pack."""
    found = []
    for row in rows:
        sizes = np.bincount([s["document"] for s in row["segments"]], [s["len"] for s in row["segments"]]).astype(int)
        ends = np.cumsum(sizes)
        assert ends[-1] == len(row["tokens"])
        found += [row["tokens"][end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return found


CASES = {
    "pairs": st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=25),
    "texts": st.lists(st.integers(0, 350), max_size=12),
    "seed": st.integers(0, 3),
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**CASES)
def test_nothing_is_lost_budgets_hold_and_input_order_does_not_matter(
    tmp_path: Path, pairs: list[tuple[int, int]], texts: list[int], seed: int
) -> None:
    given_tables = tables(pairs, texts)
    packs = stage(group_one_in=8)
    rows = list(packs.run(FakeJob(tmp_path, given_tables)))
    rng = np.random.default_rng(seed)
    shuffled = {name: table.take(rng.permutation(table.num_rows)) for name, table in given_tables.items()}
    assert list(packs.run(FakeJob(tmp_path, shuffled))) == rows
    if not rows:
        assert not pairs and not texts
        return
    vocabulary = Format.from_json(rows[0]["format"]).vocabulary
    assert sorted(row["order"] for row in rows) == list(range(len(rows)))
    said, shown = [], []
    for row in rows:
        assert row["num_tokens"] == len(row["tokens"]) <= packs.max_tokens
        assert row["flops"] <= packs.flops_per_pack
        lengths = [len(document) for document in documents([row])]
        spent = flops.causal_cost(SHAPE, vocabulary.size, lengths, np.count_nonzero(row["loss_weights"]))
        assert row["flops"] == pytest.approx(spent.train)
    pieces = []
    for document in documents(rows):
        if document[-1] == vocabulary.eos and vocabulary.boi in document:
            start, end = document.index(vocabulary.boi), document.index(vocabulary.eoi)
            block = raster.parse_block(document[start : end + 1], vocabulary, TEXT_TOKENIZER, Marks())
            said.append(bytes(document[1:start] or document[end + 1 : -1]))
            shown.append(block[1].tolist())
            continue
        pieces.append(len(document) - 1 - (document[-1] == vocabulary.eos))
        assert len(document) <= packs.max_text_tokens
    assert sorted(said) == sorted(text.encode() for text in given_tables["captions"]["text"].to_pylist())
    assert sorted(shown) == sorted([unpacked(i, 32).tolist() for i in given_tables["indices"]["ids"].to_pylist()])
    assert sum(pieces) == sum(texts)
    assert {p for row in rows for p in row["parents"]} == {
        key for table in given_tables.values() for key in table["key"].to_pylist()
    }


def test_weights_and_segments_by_hand(tmp_path: Path) -> None:
    (row,) = stage(mixture={"generation": 1.0}).run(FakeJob(tmp_path, tables([(2, 2)], [])))
    head, codes = 1 + 3 + 1, 2 * 3 + 1
    assert row["loss_weights"] == [0.0, 1.0, 1.0, *[0.5] * (head + codes + 1), 1.0]
    kinds = [(s["len"], KINDS[s["kind"]], s["document"]) for s in row["segments"]]
    marked = [(head, "marks", 0), (codes, "codes", 0), (1, "marks", 0)]
    assert kinds == [(1, "text", 0), (2, "text", 0), *marked, (1, "text", 0)]
    (after,) = stage(mixture={"understanding": 1.0}).run(FakeJob(tmp_path, tables([(2, 2)], [])))
    assert [s["len"] for s in after["segments"]] == [1, head, codes, 1, 2, 1]
    assert row["num_vision_tokens"] == 4 and row["num_text_tokens"] == 2 + 3


def test_everything_left_out_is_named(tmp_path: Path) -> None:
    made = tables([(5, 2)] * 4, [10], held_out={0})
    made["captions"] = made["captions"].filter(pa.array([True, False, True, True]))
    made["indices"] = made["indices"].filter(pa.array([True, True, False, True]))
    job = FakeJob(tmp_path, made)
    rows = list(stage().run(job))
    reasons = sorted(job.rejected.values())
    assert reasons == [
        "caption of a clip that has no indices",
        "held out for evaluation",
        "held out for evaluation",
        "indices of a clip that has no caption",
    ]
    everything = {key for table in made.values() for key in table["key"].to_pylist()}
    used = {parent for row in rows for parent in row["parents"]}
    assert used | set(job.rejected) == everything and not used & set(job.rejected)


def test_a_budget_under_the_costliest_sample_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set packs\.flops_per_pack=") as caught:
        list(stage(flops_per_pack=1e6).run(FakeJob(tmp_path, tables([(5, 8)], []))))
    enough = float(re.search(r"set packs.flops_per_pack=(\d+)", str(caught.value))[1])
    assert len(list(stage(flops_per_pack=enough).run(FakeJob(tmp_path, tables([(5, 8)], []))))) == 1
    with pytest.raises(UserError, match=r"set packs\.max_tokens="):
        list(stage(max_tokens=20).run(FakeJob(tmp_path, tables([(5, 8)], []))))


def test_a_new_sample_changes_one_group_only(tmp_path: Path) -> None:
    packs = stage(group_one_in=16, flops_per_pack=1e8)
    before = tables([(10, 4)] * 300, [])
    changed, kept = [], []
    for gone in range(290, 300):
        others = [i for i in range(300) if i != gone]
        one_less = {name: table.take(others) if table.num_rows else table for name, table in before.items()}
        with_it, without = (
            {tuple(row["tokens"]) for row in packs.run(FakeJob(tmp_path, one))} for one in (before, one_less)
        )
        changed.append(len(with_it - without))
        kept.append(len(with_it & without))
    assert max(changed) <= 4 and min(kept) >= 25


def test_order_in_training_is_a_permutation_keyed_by_the_seed(tmp_path: Path) -> None:
    given_tables = tables([(10, 4)] * 200, [])
    orders = []
    for seed in (0, 0, 1):
        rows = list(stage(seed=seed).run(FakeJob(tmp_path, given_tables)))
        orders.append([row["order"] for row in rows])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_the_report_stands_beside_both_baselines(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, tables([(i % 60, 2 + i % 7) for i in range(400)], [350] * 20))
    rows = list(stage(max_tokens=4096).run(job))
    ordered = sorted(rows, key=lambda row: row["order"])
    report = job.summaries
    assert report["num_packs"] == len(rows) and report["dropped"] == 0 and report["padding_fraction"] == 0
    costs = np.array([row["flops"] for row in ordered])
    steps = [costs[start : start + 4] for start in range(0, len(costs) - len(costs) % 4, 4)]
    assert report["imbalance"] <= 1.02 < report["fixed_length/imbalance"]
    assert np.mean([step.max() / step.mean() for step in steps]) <= 1.02
    assert 0.8 < report["fill"] <= 1 and report["pad_to_longest/padding_fraction"] > 0.2
    assert job.pictures["packs"].startswith(b"\x89PNG")
