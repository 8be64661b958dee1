"""Who is at fault where a training hangs, judged from beats by hand."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from infra.types import UserError
from stages.workers import watch
from stages.workers.fit import fit, seconds_of
from stages.workers.pulse import Beat, Heard, Pulse, Sink, What
from stages.workers.watch import Watch, culprits
from tests.stages.fake_job import FakeJob


def heard(rank: int, step: int, what: What, ago_s: float = 0.5, num_steps: int = 3, step_s: float = 1.0) -> Heard:
    rows = (4, 7) if what == "loading" else ()
    return Heard(Beat(rank, "gpu7", "n", 100 + rank, step, what, rows, 9.0, num_steps, step_s, False), ago_s)


@pytest.mark.parametrize(
    ("ranks", "guilty"),
    [
        ([heard(0, 7, "computing"), heard(1, 7, "loading"), heard(2, 7, "exchanging")], [1]),
        ([heard(0, 7, "saving"), heard(1, 7, "exchanging")], [0]),
        ([heard(0, 8, "loading"), heard(1, 7, "computing")], [1]),
        ([heard(0, 7, "loading"), heard(1, 7, "computing", ago_s=60)], [1]),
        ([heard(0, 7, "computing"), heard(1, 7, "exchanging")], [0, 1]),
        ([heard(0, 0, "starting"), heard(1, 1, "loading")], [0]),
    ],
)
def test_those_who_wait_for_nobody_are_at_fault(ranks: list[Heard], guilty: list[int]) -> None:
    assert [one.beat.rank for one in culprits(ranks)] == guilty


class Clock:
    """Stands where `time` stands."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def test_a_hang_is_said_once_and_in_words(clock: Clock) -> None:
    seen = Watch(None, lambda rows: f"packs {rows}")
    ranks = [heard(0, 7, "computing"), heard(1, 7, "loading")]
    assert seen.look(ranks) is None
    clock.now = watch.HANG_S - 1
    assert seen.look(ranks) is None
    clock.now += 1
    said = seen.look(ranks)
    assert said == (
        "no step has moved for 300 s: rank 1 (gpu7, process 101) is loading in step 7 for 10 s, packs (4, 7)"
    )
    assert seen.look(ranks) is None  # it takes a while until they have ended


def test_how_long_it_waits_depends_on_what_they_do(clock: Clock) -> None:
    for ranks, limit in [
        ([heard(0, 1, "computing", num_steps=0)], watch.START_S),
        ([heard(0, 9, "saving")], watch.START_S),
        ([heard(0, 9, "computing", step_s=40.0)], 800.0),
        ([], watch.START_S),
    ]:
        clock.now, seen = 0.0, Watch(None, None)
        assert seen.look(ranks) is None
        clock.now = limit - 1
        assert seen.look(ranks) is None
        clock.now = limit
        assert seen.look(ranks) is not None
    clock.now, seen = 0.0, Watch(5.0, None)
    moving = [heard(0, 9, "computing")]
    assert seen.look(moving) is None
    clock.now = 4.0
    assert seen.look([heard(0, 10, "computing")]) is None
    clock.now = 8.0
    assert seen.look([heard(0, 10, "computing")]) is None
    clock.now = 9.0
    assert "ranks" not in str(seen.look([heard(0, 10, "computing")]))


def test_rows_that_cannot_be_named_in_time_are_numbers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_NAMING_S", 0.05)
    stuck = threading.Event()
    seen = Watch(1.0, lambda rows: str(stuck.wait(20)))
    seen.look([heard(0, 7, "loading")])
    clock.now = 1.0
    assert "rows 4, 7 of the snapshot" in str(seen.look([heard(0, 7, "loading")]))
    stuck.set()


def test_the_sink_ends_processes_and_not_their_successors() -> None:
    sink = Sink("model", "run")
    one, two = heard(0, 3, "computing").beat, heard(1, 3, "computing").beat
    assert sink.pulse(one) == "on"
    sink.stop()
    assert sink.pulse(two) == "stop" and len(sink.beats()) == 2
    sink.end([(one.host, one.pid)])
    assert [h.beat.rank for h in sink.beats()] == [1]
    assert sink.pulse(one) == "end"
    assert sink.pulse(Beat(**{**vars(one), "pid": 999})) == "stop"


def test_a_pulse_times_steps() -> None:
    pulse = Pulse(None, 0)
    for step in (4, 5, 6):
        pulse.at(step, "loading")
        time.sleep(0.01)
        pulse.at(step, "computing")
    assert pulse._now[:2] == (6, "computing") and len(pulse._steps_s) == 2 and min(pulse._steps_s) >= 0.01
    assert pulse.wish() == 0.0


def test_sigterm_outside_training_goes_where_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.workers import pulse

    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    monkeypatch.setattr(pulse, "_told_to_leave", threading.Event())
    try:
        pulse.leave_on_sigterm()
        pulse._beating.append(one := Pulse(None, 0))
        os.kill(os.getpid(), signal.SIGTERM)
        assert one.wish() == 1.0 and not got
        os.kill(os.getpid(), signal.SIGTERM)
        assert got == [signal.SIGTERM], "a second one ends the process"
        pulse._beating.remove(one)
        pulse._told_to_leave.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(got) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_times_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_HANG_S", "2.5")
    assert seconds_of("PLAIT_HANG_S") == 2.5 and seconds_of("PLAIT_NO_SUCH_S") is None
    monkeypatch.setenv("PLAIT_HANG_S", "soon")
    with pytest.raises(UserError, match="PLAIT_HANG_S is 'soon': give a number of seconds"):
        seconds_of("PLAIT_HANG_S")


class NoCluster(FakeJob):
    def ray(self):
        raise UserError("no Ray cluster answers")


def test_workers_start_on_the_cluster_of_the_run_and_on_no_other(tmp_path, monkeypatch):
    """Ray would start one of its own, open to the network, for whoever makes an actor before it is connected."""
    monkeypatch.setattr("stages.workers.fit._Round", lambda *_: pytest.fail("workers before a cluster"))
    with pytest.raises(UserError, match="no Ray cluster"):
        fit(NoCluster(tmp_path), print, {}, name="model", workers=1, steps=1, said=str)
