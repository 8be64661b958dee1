"""Actors that die again and again cost time: a row is blamed for what it did, and not for its worker's bad luck."""

import os
import random
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.blame import DEATHS_BEFORE_BLAME, Task, after_death
from infra.types import RunError

MAX_KILLS = 12
WORDS = [f"w{i}" for i in range(160)]


class Killer(threading.Thread):
    """SIGKILL to one of our stage actors at a time, a bounded number of times: mostly in the middle of work, after a
    random number of calls, and sometimes right after the one before, when its successor is just being born."""

    def __init__(self, calls: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.calls = calls
        self.random = random.Random(seed)
        self.kills = 0
        self.over = threading.Event()

    def run(self) -> None:
        while self.kills < MAX_KILLS and not self.over.is_set():
            enough = self.num_calls() + self.random.choice([0, 3, 6, 12])
            while self.num_calls() < enough and not self.over.wait(0.02):
                pass
            hosts = [p for p in psutil.Process(os.getpid()).children(recursive=True) if is_host(p)]
            if hosts and not self.over.wait(0.1 * self.random.random()):
                with suppress(psutil.NoSuchProcess):  # it may just have been given up
                    self.random.choice(hosts).kill()
                    self.kills += 1

    def num_calls(self) -> int:
        """Rows that were processed so far."""
        return sum(1 for _ in self.calls.iterdir())


def is_host(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith("ray::Host")
    except (psutil.Error, IndexError):
        return False


@pytest.mark.slow
def test_actors_that_are_killed_at_random_cost_no_row(make_toy):
    toy = make_toy()
    for i in range(16):
        toy.write(f"t{i}.txt", " ".join(WORDS[i * 10 : i * 10 + 10]))
    killer = Killer(toy.calls_folder, seed=3)
    killer.start()
    made = toy.run(stages={n: {"shard_rows": 2, "batch_rows": 2} for n in ("texts", "words", "lengths", "upper")})
    killer.over.set()
    killer.join()
    assert killer.kills >= 6
    assert [s["quarantined"] for s in made.values()] == [0] * len(made)
    for name in ("words", "lengths", "upper"):
        assert sorted(r["label"] for r in toy.rows(name, ["label"])) == sorted(WORDS), name


def test_a_row_is_blamed_only_after_it_killed_its_worker_alone_and_time_after_time():
    parts, deaths_alone = [Task(0, (1, 2, 3, 4))], 0
    while not parts[0].blame:
        deaths_alone += len(parts[0].units) == 1
        parts = [*after_death(parts[0]), *parts[1:]]
    assert deaths_alone == DEATHS_BEFORE_BLAME
    assert all(not part.blame and part.deaths == 0 for part in parts[1:])  # nobody else bears any of it


def test_a_setup_that_kills_its_process_ends_the_run_and_blames_no_row(make_toy):
    toy = make_toy()
    toy.write("a.txt", "one two three")
    fatal = Path(f"{toy.busy}-setup-dies")
    fatal.touch()
    try:
        with pytest.raises(RunError, match=r"before they touched a row: look at the stage's `setup`"):
            toy.run(stages={"upper": {"workers": 1}})
    finally:
        fatal.unlink()
    made = toy.run()
    assert (made["upper"]["rows_out"], made["upper"]["quarantined"]) == (3, 0)
