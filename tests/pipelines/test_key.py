"""Stale if and only if a key differs; identity is not placement."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.types import UserError
from pipelines.graph import Placement
from pipelines.key import RowKeys, canonical, hash16, materialisation_key, recipe_digest, recipe_tree
from stages.clip import Clips
from tests.toy import Lengths, Words

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
SHAPES = {"max_leaves": 8}
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(), t, max_size=3), **SHAPES)


@given(TREES, TREES)
def test_equal_trees_have_equal_hashes_and_different_ones_different(a, b):
    same = canonical(a) == canonical(b) and repr(canonical(a)) == repr(canonical(b))
    assert (hash16(a) == hash16(b)) == same


def test_every_setting_moves_the_recipe():
    plain = recipe_digest(recipe_tree(Clips(), {}))
    moved = {"threshold": 28.0, "fade_threshold": 11.0, "min_scene_s": 0.5, "max_clip_s": 9.0, "crf": 19}
    digests = {recipe_digest(recipe_tree(dataclasses.replace(Clips(), **{k: v}), {})) for k, v in moved.items()}
    assert len(digests | {plain}) == len(moved) + 1


def test_a_new_setting_at_its_as_before_value_is_not_in_the_key():
    assert "later" not in Words().settings()
    assert Words(later="now").settings()["later"] == "now"


def test_a_side_input_moves_the_recipe_and_a_row_input_only_the_materialisation():
    tree = recipe_tree(Words(), {"tokenizer": "00"})
    assert recipe_digest(tree) != recipe_digest(recipe_tree(Words(), {"tokenizer": "11"}))
    assert materialisation_key(tree, {"texts": "aa"}) != materialisation_key(tree, {"texts": "bb"})


def test_no_placement_is_part_of_a_recipe():
    names = {f.name for f in dataclasses.fields(Placement)}
    for stage in (Clips(), Words(), Lengths()):
        assert not names & {f.name for f in dataclasses.fields(stage)}


def test_workers_batches_and_shards_change_no_digest(make_toy):
    toy = make_toy()
    for i in range(8):
        toy.write(f"t{i}.txt", f"alpha{i} beta{i} same same drop{i} none{i}")
    first = toy.run()
    other = make_toy(root=type(toy.root)(toy.root.folder.with_name("other")))
    sizes = {"shard_rows": 1, "batch_rows": 1, "workers": 1}
    second = other.run(stages={n: sizes for n in ("files", "texts", "words", "lengths", "upper")})
    for name in first:
        assert first[name]["snapshot"]["digest"] == second[name]["snapshot"]["digest"], name
        assert first[name]["key"] == second[name]["key"], name


def test_content_keys_count_only_among_equals():
    keys = RowKeys(Words(), "recipe")
    parent = [b"p" * 16]
    a, b, a2 = keys.assign(parent, [{"word": "a"}, {"word": "b"}, {"word": "a"}])
    assert len({a, b, a2}) == 3
    assert keys.assign(parent, [{"word": "b"}, {"word": "a"}]) == [b, a]
    assert keys.assign([b"q" * 16], [{"word": "a"}])[0] != a


class Named(Words):
    writes = 'na\u00efve "words"'
    content = ("a", "b")


INTEGRAL = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.integers() | st.text())


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=3), st.lists(st.tuples(INTEGRAL, INTEGRAL), max_size=4))
def test_row_keys_are_the_hash_of_the_canonical_json_of_their_parts(parents, values):
    counted = {}
    expected = []
    for value in values:
        bare = hash16(Named.writes, list(value), list(parents))
        counted[bare] = counted.get(bare, -1) + 1
        expected.append(hash16(bare, counted[bare]))
    rows = [{"a": a, "b": b} for a, b in values]
    assert RowKeys(Named(), "recipe").assign(parents, rows) == expected
    pure = [hash16(hash16("lengths", "rec\u00e9", list(parents)), i) for i in range(len(rows))]
    assert RowKeys(Lengths(), "rec\u00e9").assign(parents, rows) == pure


def test_the_name_of_a_row_does_not_change_between_releases():
    parent = [bytes(range(16))]
    by_content = RowKeys(Words(), "r").assign(parent, [{"word": "a"}, {"word": "a"}])
    pure = RowKeys(Lengths(), "r").assign(parent, [{}])
    assert [k.hex() for k in by_content + pure] == [
        "07a212a94f35a6cc89960f978831d48e",
        "7ef9a63c05fb003d25fe957ceb102bc7",
        "245c3686791c6ca0370597b810f87b79",
    ]


def test_pure_keys_hold_the_recipe():
    parent = [b"p" * 16]
    assert RowKeys(Lengths(), "r1").assign(parent, [{}]) != RowKeys(Lengths(), "r2").assign(parent, [{}])


def test_a_float_cannot_name_a_row():
    with pytest.raises(TypeError, match="round it"):
        RowKeys(Words(), "r").assign([b"p" * 16], [{"word": 0.1}])


def test_a_setting_that_is_no_number_is_one_sentence():
    with pytest.raises(UserError, match="nan"):
        recipe_digest(recipe_tree(dataclasses.replace(Clips(), threshold=float("nan")), {}))
