"""A bad row is a row in quarantine with its reason; it never stops a run and never takes another row with it."""

import pytest

from infra.types import RunError
from pipelines.ask import Ask
from pipelines.standing import Standing


def rest_of(toy, dataset):
    """The rest of the standing materialisation, by label."""
    standing = Standing(toy.root)
    return {e["label"]: e for e in standing.rest(standing.done(dataset)).to_pylist()}


def test_rows_that_raise_kill_or_hang_are_quarantined_and_all_others_come_out(make_toy):
    toy = make_toy()
    good = [f"good{i}" for i in range(40)]
    toy.write("a.txt", " ".join([*good[:20], "boom1", "die1", "hang1", "bad1", "drop1", "none1"]))
    toy.write("b.txt", " ".join([*good[20:], "boom2"]))
    made = toy.run(stages={"lengths": {"shard_rows": 12, "batch_rows": 4, "deadline_s": 1.0}})["lengths"]
    assert sorted(r["label"] for r in toy.rows("lengths", ["label"])) == sorted(good)
    rest = rest_of(toy, "lengths")
    assert {k: e["state"] for k, e in rest.items()} == {
        "boom1": "quarantined", "boom2": "quarantined", "die1": "quarantined", "hang1": "quarantined",
        "bad1": "quarantined", "drop1": "filtered", "none1": "empty",
    }  # fmt: skip
    assert "ValueError: the word boom1 explodes" in rest["boom1"]["error"] and rest["boom1"]["attempt"] == 2
    assert rest["boom1"]["reason"] == "ValueError: the word boom1 explodes"
    assert "killed its worker" in rest["die1"]["reason"]
    assert "deadline" in rest["hang1"]["reason"]
    assert rest["bad1"]["reason"] == "bad1 is bad"
    assert made["rows_in"] == 47 == made["rows_out"] + made["empty"] + made["filtered"] + made["quarantined"]


@pytest.mark.parametrize(("word", "sentence"), [("busy", "503"), ("lost", "peer went away")])
def test_a_transient_error_is_never_quarantined_and_the_next_run_goes_on(make_toy, word, sentence):
    toy = make_toy()
    toy.write("a.txt", " ".join(f"w{i}" for i in range(20)) + f" {word}")
    toy.busy.touch()
    with pytest.raises(RunError, match=rf"{sentence}.*finished shards are kept.*run again"):
        toy.run()
    before = toy.calls("lengths")
    toy.forget_calls()
    toy.busy.unlink()
    made = toy.run()["lengths"]
    assert made["quarantined"] == 0 and made["rows_out"] == 21
    assert toy.calls("lengths") <= 4 < before  # only the shard that was left undone


def test_missing_credentials_in_a_worker_end_the_run_and_blame_no_row(make_toy):
    toy = make_toy()
    toy.write("a.txt", "one two keyless")
    toy.busy.touch()
    with pytest.raises(RunError, match="no credentials for the store"):
        toy.run()
    toy.busy.unlink()
    made = toy.run()["lengths"]
    assert (made["rows_out"], made["quarantined"]) == (3, 0)


def test_an_error_budget_stops_the_run_early_with_one_sentence(make_toy):
    toy = make_toy()
    toy.write("a.txt", " ".join(f"bad{i}" for i in range(60)))
    with pytest.raises(RunError, match=r"over its error budget.*bad\d+ is bad.*--force"):
        toy.run()
    assert toy.calls("lengths") < 60
    toy.forget_calls()
    with pytest.raises(RunError, match="over its error budget"):  # the same command again does not slip past it
        toy.run()
    assert toy.calls("lengths") == 0


def test_a_quarantined_unit_is_not_tried_again_when_its_neighbours_change(make_toy):
    toy = make_toy()
    toy.write("a.txt", "boom one")
    toy.run()
    toy.forget_calls()
    toy.write("b.txt", "two")
    made = toy.run()["lengths"]
    assert toy.calls("lengths") == 1 and made["quarantined"] == 1
    again = toy.run(Ask(retry_quarantined=True))["lengths"]
    assert again["quarantined"] == 1 and again["rows_out"] == 2


def test_a_row_that_does_not_fit_the_schema_is_quarantined_alone(make_toy):
    toy = make_toy()
    toy.write("a.txt", "one two misfit three")
    made = toy.run()["lengths"]
    assert (made["rows_out"], made["quarantined"]) == (3, 1)
    assert "does not fit the schema of lengths" in rest_of(toy, "lengths")["misfit"]["reason"]


def test_a_call_that_never_lets_go_of_the_interpreter_is_stopped_from_outside(make_toy, monkeypatch):
    monkeypatch.setattr("infra.lane.HANG_GRACE_S", 2.0)
    toy = make_toy()
    toy.write("a.txt", "one two grip three")
    made = toy.run(stages={"lengths": {"shard_rows": 2, "batch_rows": 2, "deadline_s": 0.5}})["lengths"]
    assert (made["rows_out"], made["quarantined"]) == (3, 1)
    assert "deadline" in rest_of(toy, "lengths")["grip"]["reason"]
