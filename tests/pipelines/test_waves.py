"""A large input in waves: stages overlap, none runs far ahead, and the result is that of one go, key for key."""

import threading
import time

import pytest

from infra.types import RunError, Snapshot
from pipelines.ask import Ask
from pipelines.standing import Standing
from pipelines.waves import Brought, Flood, cut, standing_still, streamed
from tests import toy as toy_pipeline


def write(toy, numbers):
    """Texts whose words are partly shared, dropped or bad."""
    for i in numbers:
        toy.write(f"t{i}.txt", f"alpha{i} beta{i % 3} same drop{i} none{i} bad{i % 4}")


def standing(toy):
    """What a run left: key, digest and counts of each dataset, and its rest."""
    now = Standing(toy.root)
    found = {}
    for name, done in now.dones.items():
        rest = sorted((e["label"], e["state"], e["reason"]) for e in now.rest(done).to_pylist())
        counts = [done[c] for c in ("rows_in", "rows_out", "empty", "filtered", "quarantined")]
        found[name] = (done["key"], done["snapshot"]["digest"], counts, rest)
    return found


def test_waves_end_where_one_go_ends_key_for_key(tmp_path, make_toy):
    from infra.folder_bucket import LocalBucket

    one_go = make_toy()
    write(one_go, range(11))
    one_go.run()
    waves = make_toy(root=LocalBucket(tmp_path / "root-waves"))
    stages = waves.run(Ask(wave=3))
    assert standing(waves) == standing(one_go)
    assert waves.calls("words") == 11 and stages["words"]["computed"] == 11
    assert [len(waves.planner().ledger.every(n)) for n in ("files", "texts", "words", "lengths")] == [4, 4, 4, 4]
    assert {p["state"] for p in waves.plan().values()} == {"fresh"}
    again = waves.run(Ask(wave=3))
    assert {s["state"] for s in again.values()} == {"fresh"}


def test_a_run_in_waves_that_fails_goes_on_where_it_was(make_toy):
    toy = make_toy()
    write(toy, range(9))
    toy.write("t99.txt", "busy")
    toy.busy.touch()
    with pytest.raises(RunError, match=r"503.*run again"):
        toy.run(Ask(wave=2))
    toy.busy.unlink()
    done_before = toy.calls("words")
    toy.forget_calls()
    toy.run(Ask(wave=2))
    assert toy.calls("words") == 10 - done_before
    assert {p["state"] for p in toy.plan().values()} == {"fresh"}


def test_a_held_stage_that_stands_lets_its_readers_go_along_with_every_wave(make_toy):
    toy = make_toy()
    write(toy, range(2))
    toy.run()
    planner = toy.planner()
    still = standing_still(planner)
    assert list(still) == ["book"]
    assert [n.name for n in streamed(planner.graph, still)] == ["files", "texts", "words", "lengths", "upper"]
    assert [n.name for n in streamed(planner.graph, {})] == ["files", "texts", "words", "lengths"]
    write(toy, range(2, 8))
    toy.run(Ask(wave=2))
    assert len(toy.planner().ledger.every("upper")) > 2 and toy.calls("book") == 1


class Watch:
    """A `bring` that makes nothing and writes down what works at the same time."""

    def __init__(self, seconds):
        self.seconds, self.lock = seconds, threading.Lock()
        self.now, self.pairs, self.lead, self.reached = set(), set(), 0, {}

    def __call__(self, node, wave, _):
        with self.lock:
            self.now.add(node.name)
            self.pairs |= {(a, b) for a in self.now for b in self.now if a < b}
        time.sleep(self.seconds.get(node.name, 0.01))
        with self.lock:
            self.now.discard(node.name)
            self.reached[node.name] = wave.number
            self.lead = max(self.lead, wave.number - self.reached.get("lengths", 0))
        return Brought(None, None, "done", Snapshot(node.name, "", wave.number, "", 0))


@pytest.mark.parametrize("lag", [1, 3])
def test_stages_overlap_and_none_is_further_ahead_than_allowed(make_toy, lag):
    graph = toy_pipeline.graph(make_toy().config())
    nodes = streamed(graph, {})
    watch = Watch({"lengths": 0.05})
    flood = Flood(nodes, graph, cut(24, 2), lag, {}, watch, lambda _: None)
    ended = []
    flood.run(lambda brought, wave: ended.append((brought.snapshot.name, wave.number)))
    assert sorted(ended) == sorted((n.name, i) for n in nodes for i in range(1, 13))
    assert ("lengths", "words") in watch.pairs  # the later stage works on a wave while the earlier makes the next
    # each of files, texts, words has at most `lag` waves waiting, beside the one that it works on
    assert watch.lead <= 3 * (lag + 1)
    assert len(flood.at) <= len(nodes) * (lag + 3)  # memory does not grow with the number of waves


@pytest.mark.timeout(30)
def test_the_first_error_stops_the_stages_that_work_at_the_same_time(make_toy):
    graph = toy_pipeline.graph(make_toy().config())
    stopped = threading.Event()

    def bring(node, wave, _):
        if node.name == "lengths":
            raise RunError("lengths cannot go on")
        if node.name == "words" and wave.number == 2:
            assert stopped.wait(20)  # as a long shard would, until it is told
        return Brought(None, None, "done", Snapshot(node.name, "", wave.number, "", 0))

    flood = Flood(streamed(graph, {}), graph, cut(24, 2), 2, {}, bring, lambda error: stopped.set())
    with pytest.raises(RunError, match="lengths cannot go on"):
        flood.run(lambda *_: None)
    assert stopped.is_set()
