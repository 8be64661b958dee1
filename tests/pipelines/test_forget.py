"""A takedown: derived rows go everywhere, nothing brings them back, and with --purge the bytes are gone as well."""

import shutil

import pytest

from infra.types import UserError
from pipelines import forget, gc
from pipelines.ask import Ask
from pipelines.standing import Standing

SECRET = "xyzzyplugh"


@pytest.fixture
def toy(make_toy):
    made = make_toy()
    for i in range(4):
        made.write(f"t{i}.txt", f"alpha{i} beta{i} same")
    made.write("bad.txt", f"{SECRET} same other")
    made.run()
    made.run(words={"min_chars": 5})  # an older materialisation that holds it as well
    made.run()
    made.forget_calls()
    return made


def take_down(toy, target):
    """What the verb does: find, deny, drop by a run of the row stages."""
    found = forget.find(Standing(toy.root), target)
    forget.deny(Standing(toy.root), found)
    toy.run(Ask(rows_only=True))
    return found


def holders(toy):
    """Files of the root's datasets that hold the secret in plain bytes."""
    files = (toy.root.folder / "datasets").rglob("*")
    return [p for p in files if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_derived_rows_go_from_every_dataset_without_a_call(toy):
    found = take_down(toy, "bad.txt")
    assert {name: len(keys) for name, keys in found.derived.items()} == {
        "texts": 1, "words": 3, "lengths": 3, "upper": 3,
    }  # fmt: skip
    for name in ("texts", "words", "lengths", "upper"):
        labels = [r["label"] for r in toy.rows(name, ["label"])]
        assert SECRET not in " ".join(labels) and "other" not in labels and "bad.txt" not in labels
    assert sum(toy.calls(s) for s in ("words", "lengths", "upper")) == 0
    standing = Standing(toy.root)
    reasons = {e["label"]: e["reason"] for e in standing.rest(standing.done("texts")).to_pylist()}
    assert reasons == {"bad.txt": "taken down by plait forget"}


def test_neither_a_copy_nor_force_brings_it_back(toy):
    take_down(toy, "bad.txt")
    shutil.copy(toy.source / "bad.txt", toy.source / "copy of bad.txt")
    toy.run()
    toy.run(Ask(force=True))
    assert len(toy.rows("files", ["label"])) == 6
    assert len(toy.rows("texts", ["label"])) == 4


def test_a_derived_row_names_the_raw_file_that_it_came_from(toy):
    standing = Standing(toy.root)
    rows = standing.store.scan(standing.snapshot("upper"), ["key", "label"]).to_pylist()
    key = next(r["key"] for r in rows if r["label"] == "other")
    assert forget.find(standing, key.hex()).labels == ["bad.txt"]


def test_a_dataset_is_no_target(toy):
    with pytest.raises(UserError, match="whole dataset"):
        forget.find(Standing(toy.root), "words")


def test_purge_removes_the_bytes_and_keeps_all_other_rows(toy):
    assert holders(toy)
    found = take_down(toy, "bad.txt")
    standing = Standing(toy.root)
    older = forget.old_versions(standing, found)
    assert {v["dataset"] for v in older} >= {"words", "lengths"}
    before = {n: standing.snapshot(n).digest for n in ("texts", "words", "lengths", "upper")}
    assert forget.purge(standing, found, ["files", "texts", "words", "lengths", "upper"]) > 0
    assert holders(toy) == []
    after = Standing(toy.root)
    assert {n: after.snapshot(n).digest for n in before} == before
    assert forget.old_versions(after, found) == [] and gc.find(toy.root) == []
    assert {s["state"] for s in toy.run().values()} == {"fresh"}
    assert len(toy.run(words={"min_chars": 5})["words"]) > 0
    assert holders(toy) == []


def test_a_version_forced_after_a_rewritten_one_is_pinned_as_well(toy):
    found = take_down(toy, "bad.txt")
    forget.purge(Standing(toy.root), found, ["texts", "words", "lengths", "upper"])
    toy.run(Ask(force=True))
    standing = Standing(toy.root)
    for name in ("texts", "words", "lengths", "upper"):
        assert standing.snapshot(name).version in standing.store.tagged(name), name
