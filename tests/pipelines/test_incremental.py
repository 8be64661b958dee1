"""Nothing is computed twice: what moved is computed, and only that."""

import shutil

import pytest

from infra.types import UserError
from pipelines.ask import Ask
from pipelines.standing import Standing
from tests.infra.test_listing import strew


@pytest.fixture
def toy(make_toy):
    """Six texts of four words: `alphaN betaN same dropN`."""
    made = make_toy()
    for i in range(6):
        made.write(f"t{i}.txt", f"alpha{i} beta{i} same drop{i}")
    made.run()
    made.forget_calls()
    return made


def test_a_second_run_is_fresh_and_starts_no_actor(toy):
    toy.ray_asked = 0
    again = toy.run()
    assert {s["state"] for s in again.values()} == {"fresh"}
    assert toy.ray_asked == 0
    assert all(s["computed"] == 0 for s in again.values())


def test_after_run_plan_is_empty(toy):
    for plan in toy.plan().values():
        assert (plan["state"], plan["compute"], plan["drop"], plan["cause"]) == ("fresh", 0, 0, [])


def test_ten_new_and_ten_changed_rows_are_twenty_calls(toy):
    toy.write("t0.txt", "alpha0 beta0 same drop0 extra")
    toy.write("new.txt", "one two")
    made = toy.run()
    assert toy.calls("words") == 2
    assert made["texts"]["computed"] == 2
    # the changed file is new content: its words are other rows, since a word is named by its text and its parent
    assert toy.calls("lengths") == 5 + 2
    assert made["lengths"]["kept"] == 20


def test_a_moved_clause_rescores_nothing_and_computes_only_what_newly_passes(toy):
    mark = {"upper": {"mark": "?"}}
    narrow = toy.run(select={"short": "chars < 5"}, **mark)
    assert toy.calls("lengths") == 0 and toy.calls("upper") == narrow["upper"]["rows_out"] == 6
    toy.forget_calls()
    wide = toy.run(select={"short": "chars < 6"}, **mark)
    assert toy.calls("lengths") == 0 and toy.calls("upper") == 6
    assert wide["upper"]["kept"] == 6 and wide["upper"]["rows_out"] == 12
    toy.forget_calls()
    back = toy.run(select={"short": "chars < 5"}, **mark)
    assert {s["state"] for s in back.values()} == {"fresh"}


def test_the_base_is_the_materialisation_of_which_most_can_be_kept(toy):
    toy.run(select={"short": "chars < 5"})
    wide = toy.run(select={"short": "chars < 6"})
    assert toy.calls("upper") == 0  # the first run of all had these rows
    assert wide["upper"]["kept"] == 12


def test_a_moved_setting_recomputes_downstream_only_for_rows_that_changed(toy):
    made = toy.run(words={"min_chars": 5})
    assert toy.calls("words") == 6
    assert made["words"]["rows_out"] == 6 * 3  # "same" is gone, and its ordinal is in no key
    assert toy.calls("lengths") == 0 and made["lengths"]["kept"] == 18
    toy.forget_calls()
    toy.run()
    assert toy.calls("words") == 0 and toy.calls("lengths") == 0


def test_a_deleted_file_takes_its_rows_with_it_without_a_call(toy):
    (toy.source / "t5.txt").unlink()
    made = toy.run()
    assert sum(toy.calls(s) for s in ("words", "lengths", "upper")) == 0
    assert made["words"]["rows_out"] == 20
    assert not any(r["label"].endswith("5") for d in ("words", "lengths", "upper") for r in toy.rows(d, ["label"]))


def test_a_moved_or_copied_file_costs_nothing(toy):
    (toy.source / "deep").mkdir()
    (toy.source / "t4.txt").rename(toy.source / "deep" / "moved.txt")
    shutil.copy(toy.source / "t3.txt", toy.source / "copy.txt")
    made = toy.run()
    assert made["files"]["rows_out"] == 7
    assert {made[n]["state"] for n in ("texts", "words", "lengths", "upper")} == {"fresh"}
    # and a later change of settings still finds the moved bytes
    toy.run(Ask(only="texts", force=True))


def test_a_held_edge_keeps_its_snapshot_until_refreshed(toy):
    toy.write("new.txt", "one two")
    plan = toy.plan()
    assert plan["book"]["state"] == "fresh"
    made = toy.run()
    assert made["book"]["state"] == "fresh" and toy.calls("book") == 0
    assert toy.calls("upper") == 2
    assert toy.plan()["book"]["held"] == 2
    refreshed = toy.run(Ask(refresh=("book",)))
    assert refreshed["book"]["state"] == "done"
    assert toy.rows("book", ["num_words"]) == [{"num_words": 20}]


def test_only_runs_the_named_stage_over_what_stands(toy):
    toy.write("new.txt", "one two")
    made = toy.run(Ask(only="words"))
    assert made["words"]["state"] == "fresh"
    assert {made[n]["state"] for n in made if n != "words"} == {"skipped"}
    assert sum(toy.calls(s) for s in ("words", "lengths", "upper")) == 0


def test_force_computes_what_is_fresh_and_equal_results_keep_the_rest_fresh(toy):
    made = toy.run(Ask(only="lengths", force=True))
    assert toy.calls("lengths") == 24
    assert made["lengths"]["computed"] == 24
    assert {s["state"] for s in toy.run().values()} == {"fresh"}


def test_limit_is_a_prefix_of_the_listing(toy):
    toy.run(Ask(limit=2))
    few = {r["label"] for r in toy.rows("texts", ["label"])}
    toy.run(Ask(limit=4))
    more = {r["label"] for r in toy.rows("texts", ["label"])}
    assert len(few) == 2 and len(more) == 4 and few < more


def test_quarantined_rows_are_tried_again_only_when_asked(toy, make_toy):
    toy.write("busy.txt", "boomer fine")
    toy.run()
    toy.forget_calls()
    assert {s["state"] for s in toy.run().values()} == {"fresh"}
    made = toy.run(Ask(retry_quarantined=True))
    assert toy.calls("lengths") == 2  # one row, tried twice before it is blamed again
    assert made["lengths"]["quarantined"] == 1


def test_a_select_that_newly_drops_what_never_passed_is_told_in_the_funnel(toy):
    toy.run(select={"short": "chars < 5"})
    toy.write("long.txt", "extraordinarily")
    made = toy.run(select={"short": "chars < 5"})["upper"]
    assert (made["state"], made["rows_out"], made["filtered"]) == ("fresh", 6, 19)
    standing = Standing(toy.root)
    reasons = {e["label"]: e["reason"] for e in standing.rest(standing.done("upper")).to_pylist()}
    assert reasons["extraordinarily"] == "short"
    assert toy.run(select={"brief": "chars < 5"})["upper"]["state"] == "fresh"
    standing = Standing(toy.root)
    assert standing.done("upper")["reasons"] == {"filtered: brief": 13, "filtered: no score": 6}


def test_a_forced_stage_keeps_the_lineage_of_what_was_made_from_its_older_version(toy):
    from pipelines.lineage import Lineage
    from pipelines.target import Finder

    toy.run(Ask(only="words", force=True))
    lineage, finder = Lineage(Standing(toy.root)), Finder(Standing(toy.root))
    files = {n["label"] for n in lineage.up(finder.find("upper")).nodes.values() if n["kind"] == "file"}
    assert files == {f"t{i}.txt" for i in range(6)}
    assert finder.find("words@1").done["snapshot"]["version"] == 1


def test_a_partial_run_stands_on_what_the_last_run_stood_on(toy):
    toy.run(Ask(limit=2))
    toy.run()
    toy.write("new.txt", "one two")
    made = toy.run(Ask(only="words"))
    assert made["files"]["rows_out"] == 6  # not the two of the limited run, which was made last
    assert {r["label"] for r in toy.rows("texts", ["label"])} == {f"t{i}.txt" for i in range(6)}


def test_an_empty_stretch_of_stages_is_refused(toy):
    with pytest.raises(UserError, match="--from must come before --to"):
        toy.run(Ask(start="upper", to="words"))


def test_diff_names_the_setting_and_the_rows_that_differ(toy):
    from pipelines.diff import between

    first = toy.result().run_id
    second = toy.result(words={"min_chars": 5}).run_id
    by_name = {e["name"]: e for e in between(Standing(toy.root), first, second)}
    assert {"leaf": "settings.min_chars", "was": 1, "now": 5} in by_name["words"]["leaves"]
    assert by_name["words"]["rows"] == {"both": 18, "only_a": 6, "only_b": 0, "changed": 0}
    assert "texts" not in by_name and "book" not in by_name
    assert between(Standing(toy.root), first, first) == []
    assert between(Standing(toy.root), "words@1", "words@2")[0]["rows"]["only_a"] == 6


def test_what_is_no_file_is_filtered_with_its_reason_and_changes_nothing_downstream(make_toy, tmp_path):
    toy = make_toy()
    outside = tmp_path / "outside"
    outside.mkdir()
    strew(toy.source, outside)
    made = toy.run()
    assert (made["files"]["rows_in"], made["files"]["rows_out"], made["files"]["filtered"]) == (9, 2, 7)
    assert sum(count for reason, count in made["files"]["reasons"].items() if "link to a folder" in reason) == 2
    assert made["texts"]["rows_out"] == 2
    assert toy.run()["files"]["state"] == "fresh"
