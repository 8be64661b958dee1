"""A row can bring its parent along: found by position, at no cost to its key, and missed by nobody but itself."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pytest

from infra.types import UserError
from pipelines.ask import Ask
from pipelines.graph import Graph, Node, Placement
from pipelines.plan import Planner
from pipelines.run import Runner, Services
from pipelines.standing import Standing
from stages.base import Edge, RowStage
from tests import toy
from tests.conftest import Quiet


@dataclass(frozen=True, kw_only=True)
class Places(RowStage):
    """Where each word stands in its text, and in how long a one."""

    writes = "places"
    inputs = (Edge("words", columns=("word",), parent=("texts", ("text", "num_chars"))),)
    schema = pa.schema([("word", pa.string()), ("at", pa.int64()), ("of", pa.int64())])

    def process(self, rows, tools):
        """One row per word."""
        found = []
        for row in rows:
            toy.count_call("places")
            text = row["parent"]["text"]
            found.append([{"word": row["word"], "at": text.index(row["word"]), "of": row["parent"]["num_chars"]}])
        return found


@pytest.fixture
def run(make_toy):
    """Runs the toy pipeline with `places` behind it; `told` gives each row by word."""
    world = make_toy()

    def going(ask=None, shard_rows=3, batch_rows=2):
        nodes = (*toy.graph(world.config()).nodes[:3], Node(Places(), placement=Placement(shard_rows=shard_rows, batch_rows=batch_rows)))  # fmt: skip  # noqa: E501
        planner = Planner(Graph("places", nodes), world.root, world.source_bucket, ask or Ask())
        services = Services(
            world.root, world.source_bucket, lambda: world.ray, lambda: None, lambda *_: {}, Quiet(), ""
        )
        world.forget_calls()
        return {s["name"]: s for s in Runner(planner, services, ask or Ask(), {}).run().stages}

    world.going = going
    world.told = lambda: {r["word"]: (r["at"], r["of"]) for r in world.rows("places", ["word", "at", "of"])}
    return world


TEXTS = {"a.txt": "one two three four", "b.txt": "five six", "c.txt": "seven eight nine"}
TOLD = {word: (text.index(word), len(text)) for text in TEXTS.values() for word in text.split()}


def test_each_row_sees_its_own_parent_and_only_new_rows_are_computed(run):
    for name, text in TEXTS.items():
        run.write(name, text)
    run.going()
    assert run.told() == TOLD
    run.write("d.txt", "ten eleven")
    (run.source / "b.txt").unlink()
    entry = run.going()["places"]
    assert (entry["computed"], run.calls("places")) == (2, 2)
    assert set(run.told()) == {*TOLD, "ten", "eleven"} - {"five", "six"} and run.told()["eleven"] == (4, 10)


def test_shards_and_batches_do_not_matter_and_the_key_names_no_parent(run):
    for name, text in TEXTS.items():
        run.write(name, text)
    digests = set()
    for shard_rows, batch_rows in ((1, 1), (4, 3), (100, 100)):
        entry = run.going(Ask(force=True), shard_rows, batch_rows)["places"]
        digests.add(entry["snapshot"]["digest"])
    done = Standing(run.root).done("places")
    tree = run.root.get(f"ledger/places/{done['key']}/key.json")
    assert len(digests) == 1 and b'"texts"' not in tree.partition(b'"notes"')[0]
    assert done["inputs"]["texts"]["role"] == "parent"


def test_a_row_whose_parent_is_gone_is_quarantined_alone_and_comes_back_when_tried_again(run):
    for name, text in TEXTS.items():
        run.write(name, text)
    run.going(Ask(to="words"))
    (run.source / "b.txt").rename(run.source.parent / "b.txt")
    run.going(Ask(to="texts"))
    entry = run.going(Ask(only="places"))["places"]
    assert (entry["rows_out"], entry["quarantined"]) == (7, 2) and not {"five", "six"} & set(run.told())
    (run.source.parent / "b.txt").rename(run.source / "b.txt")
    run.going()
    entry = run.going(Ask(retry_quarantined=True))["places"]
    assert (entry["computed"], entry["quarantined"]) == (2, 0) and run.told() == TOLD


def test_only_row_stages_bring_parents(run):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(toy.Book):
        inputs = (Edge("words", parent=("texts", ("text",))),)

    with pytest.raises(UserError, match="only the rows edges of a row stage"):
        Graph("wrong", (*toy.graph(run.config()).nodes[:3], Node(Wrong())))
