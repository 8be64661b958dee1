"""Fewer files, same rows: keys, parents and digests stay, nothing goes stale, and readers and lineage go on."""

from pipelines import compaction, gc
from pipelines.ask import Ask
from pipelines.lineage import Lineage
from pipelines.standing import Standing
from pipelines.target import Finder


def test_compaction_makes_fewer_files_of_the_same_rows_and_nothing_goes_stale(make_toy):
    toy = make_toy()
    for day in range(4):
        for i in range(3):
            toy.write(f"d{day}-{i}.txt", f"alpha{day}{i} beta{i} same")
        toy.run()
    (toy.source / "d0-0.txt").unlink()
    toy.run()
    before = Standing(toy.root)
    rows = {n: sorted(map(str, toy.rows(n, ["key", "parents", "label"]))) for n in before.dones}
    for name, done in before.dones.items():
        fragments = compaction.num_fragments(before, done)
        assert compaction.rewrite(before, done) == (fragments > 1), name
    after = Standing(toy.root)
    assert all(compaction.num_fragments(after, done) == 1 for done in after.dones.values())
    assert {n: sorted(map(str, toy.rows(n, ["key", "parents", "label"]))) for n in after.dones} == rows
    gc.collect(toy.root, gc.find(toy.root))
    toy.forget_calls()
    assert {p["state"] for p in toy.plan().values()} == {"fresh"}
    now = Standing(toy.root)
    assert any(n["kind"] == "file" for n in Lineage(now).up(Finder(now).find("upper")).nodes.values())
    toy.write("new.txt", "gamma delta")
    made = toy.run()
    assert made["words"]["computed"] == 1 and toy.calls("words") == 1  # an increment on the rewritten base


def test_a_collection_spares_what_an_unfinished_plan_still_reads(make_toy):
    """A run is cut off; its input is compacted and collected; the resumed run still finds its pinned version."""
    import pytest

    from infra.types import RunError

    toy = make_toy()
    for i in range(4):
        toy.write(f"a{i}.txt", f"alpha{i} beta{i}")
        toy.run(Ask(to="words"))
    toy.write("z.txt", "one two busy three four five")
    toy.busy.touch()
    with pytest.raises(RunError, match="503"):
        toy.run()
    toy.busy.unlink()
    standing = Standing(toy.root)
    assert compaction.rewrite(standing, standing.done("words"))
    gc.collect(toy.root, gc.find(toy.root))
    made = toy.run()
    assert made["lengths"]["rows_out"] == 14 and {p["state"] for p in toy.plan().values()} == {"fresh"}
