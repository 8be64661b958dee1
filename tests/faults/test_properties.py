"""Whatever is edited in whatever order: stale if and only if a key is new, nothing left to plan after a run, and the
same rows as a run from nothing over the same files, in whatever shards and batches either of them worked."""

import uuid

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger
from tests.conftest import Toy

FILES = ["a.txt", "b.txt", "c.txt"]
TEXTS = st.lists(st.sampled_from(["one", "three", "same", "same", "drop1", "none2", "boom3"]), min_size=1, max_size=5)
EDITS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(FILES), TEXTS.map(" ".join)),
    st.tuples(st.just("delete"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("min_chars"), st.none(), st.integers(1, 4)),
    st.tuples(st.just("clause"), st.none(), st.sampled_from(["chars < 4", "chars < 5", "chars < 100"])),
    st.tuples(st.just("mark"), st.none(), st.sampled_from(["!", "?"])),
)
SIZES = st.fixed_dictionaries(
    {n: st.integers(1, 5) for n in ("shard_rows", "batch_rows")} | {"workers": st.integers(1, 2)}
)
STAGES = ("files", "texts", "words", "lengths", "upper")
ROUNDS = st.lists(st.tuples(st.lists(EDITS, min_size=1, max_size=3), SIZES), min_size=1, max_size=2)


class Edited:
    """A source, and the settings so far."""

    def __init__(self, toy):
        self.toy = toy
        self.settings = {"words": {"min_chars": 1}, "upper": {"mark": "!"}, "select": {"short": "chars < 100"}}
        toy.write("always.txt", "always there")

    def edit(self, what, name, value):
        """One edit."""
        if what == "write":
            self.toy.write(name, value)
        elif what == "delete":
            (self.toy.source / name).unlink(missing_ok=True)
        elif what == "clause":
            self.settings["select"] = {"short": value}
        else:
            self.settings["words" if what == "min_chars" else "upper"] = {what: value}

    def config(self, sizes):
        """For `run` and `plan`."""
        return self.settings | {"stages": dict.fromkeys(STAGES, sizes)}


def published(toy):
    """Every key that has a `done`."""
    ledger = Ledger(toy.root)
    return {d["key"] for name in ledger.datasets() for d in ledger.every(name)}


@pytest.mark.slow
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rounds=ROUNDS, last_sizes=SIZES)
def test_edits_in_any_order_end_as_a_run_from_nothing(rounds, last_sizes, tmp_path, toy_marks, ray):
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    toy = Toy(folder, toy_marks, ray)
    edited = Edited(toy)
    for edits, sizes in rounds:
        for edit in edits:
            edited.edit(*edit)
        config = edited.config(sizes)
        made, known = published(toy), {p.name: p for p in toy.planner(**config).plan_all()}
        for plan in known.values():
            assert plan.key is None or (plan.state == "fresh") == (plan.key in made), plan.name
        run = toy.run(**config)
        after = toy.plan(**config)
        assert {(p["state"], p["compute"], p["drop"]) for p in after.values()} == {("fresh", 0, 0)}
        assert all(run[n]["state"] == "fresh" for n, p in known.items() if p.state == "fresh")
    # `book` is held: it knows the words of its first run, and so does what reads it as a side input
    anew = Toy(folder, toy_marks, ray, root=LocalBucket(folder / "anew")).run(**edited.config(last_sizes))
    for name in ("files", "texts", "words", "lengths"):
        assert run[name]["snapshot"]["digest"] == anew[name]["snapshot"]["digest"], name
        counts = ("rows_in", "rows_out", "empty", "filtered", "quarantined")
        assert [run[name][c] for c in counts] == [anew[name][c] for c in counts], name
    assert run["upper"]["rows_out"] == anew["upper"]["rows_out"]
