"""A run that goes on can be seen, heard and stopped from any host that sees the root."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger, dumps, is_alive_here, me
from infra.runs import RUNS, OpenRun, Runs
from infra.s3_bucket import S3Bucket
from infra.types import RunError, StoppedError, UserError
from pipelines import gc
from pipelines.cli import going, show
from pipelines.shown import Mirror, Shown
from tests.conftest import REPO, answered, plait
from tests.faults.test_mlflow import tracker_at

CLUSTER = {"lengths": {"shard_rows": 1, "batch_rows": 1}}


def until(true, seconds=20.0):
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def log_of(toy, run=None):
    """The log of a run of this root."""
    runs = Runs(toy.root)
    return runs.log(runs.pick(run))[0]


def texts(lines, stage):
    """What one stage said."""
    return [line["text"] for line in lines if line["stage"] == stage]


def test_what_stages_print_and_log_in_their_workers_is_in_the_log_of_the_run_without_secrets(make_toy, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sayhunter22")
    toy = make_toy()
    toy.write("a.txt", "one saywhat sayhunter22 " + " ".join(f"bad{i}" for i in range(8)))
    toy.run()
    lines = log_of(toy)
    said = texts(lines, "lengths")
    assert {"saywhat aloud", "and once more", "toy: saywhat is strange", "*** aloud"} <= set(said)
    assert "saywhat aloud" in texts(lines, "book")  # a job stage, in the driver
    (spoken,) = [line for line in lines if line["text"] == "saywhat aloud" and line["stage"] == "lengths"]
    assert spoken["worker"] != "driver" and spoken["level"] == "out"
    assert sum(text.startswith("quarantined bad") for text in said) == 5
    assert "8 units were quarantined in all: plait quarantine lengths" in said
    assert any(text.startswith("done: 11 rows_in") for text in said)
    assert texts(lines, "")[-1] == "the run ends: well"
    for path in (toy.root.folder / RUNS).rglob("*"):
        assert not path.is_file() or b"sayhunter22" not in path.read_bytes(), path
    assert Ledger(toy.root).runs() == Runs(toy.root).ids  # the log is no record of a run


def test_a_run_that_fails_leaves_its_sentence_in_the_log(make_toy):
    toy = make_toy()
    toy.write("a.txt", "one busy")
    toy.busy.touch()
    with pytest.raises(RunError):
        toy.run()
    toy.busy.unlink()
    errors = [line for line in log_of(toy) if line["level"] == "error"]
    assert [line["stage"] for line in errors] == ["lengths", ""] and "503" in errors[0]["text"]


def test_a_cancelled_run_stops_within_seconds_keeps_its_shards_and_is_killed_in_mlflow(make_toy, tmp_path):
    toy = make_toy()
    toy.write("a.txt", " ".join(f"slow{i}" for i in range(24)))
    raised = []

    def work():
        try:
            toy.run(tracker=lambda: tracker_at(tmp_path), stages=CLUSTER)
        except StoppedError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: toy.calls("lengths") > 4, 60)
    (going,) = Runs(toy.root).going()
    assert (going["host"], going["pid"]) == (me()["host"], os.getpid())
    asked = time.monotonic()
    Runs(toy.root).ask_to_stop(going["run_id"])
    thread.join(30)
    assert time.monotonic() - asked < 12 and not thread.is_alive()
    assert (
        "cancelled by" in raised[0] and me()["host"] in raised[0] and "finished shards are kept: run again" in raised[0]
    )
    record = Ledger(toy.root).run(going["run_id"])
    assert not record["ok"] and record["error"] == raised[0]
    assert Runs(toy.root).going() == []
    tracker = tracker_at(tmp_path)
    (parent,) = tracker.client.search_runs([tracker.experiment], "tags.`plait.pipeline` = 'toy'")
    assert parent.info.status == "KILLED"
    shards = [n for n in toy.root.names("ledger/lengths") if "/shard." in n]
    toy.forget_calls()
    (toy.source / "a.txt").touch()
    assert toy.run(stages=CLUSTER)["lengths"]["rows_out"] == 24
    assert len(shards) >= 3 and toy.calls("lengths") == 24 - len(shards)


def test_a_job_stage_in_the_driver_stops_at_its_next_sign_of_progress(make_toy):
    toy = make_toy()
    toy.write("a.txt", " ".join(f"nap{i}" for i in range(60)))
    raised = []

    def work():
        try:
            toy.run(stages={"lengths": {"shard_rows": 100, "batch_rows": 100}})
        except StoppedError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: toy.calls("book"), 60)
    (going,) = Runs(toy.root).going()
    Runs(toy.root).ask_to_stop(going["run_id"])
    thread.join(12)
    assert not thread.is_alive() and "cancelled by" in raised[0]
    assert all(folder.holder() is None for folder in gc._folders(Ledger(toy.root), "book"))  # the claim is let go


@pytest.mark.slow
def test_sigterm_stops_a_run_as_cancel_does_and_the_verbs_see_it_before_and_after(tmp_path, near):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text(" ".join(f"slow{i}" for i in range(100)))
    where = ["root=root", "pipeline=tests.toy:graph", "tracking=none"]
    command = [sys.executable, "-m", "pipelines.cli.main", "run", *where, "source=src", "--json"]
    process = subprocess.Popen(
        [*command, "cluster.stages.lengths.shard_rows=1"],
        cwd=tmp_path, env=os.environ | near | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("root/ledger/lengths/*/shard.*")), 60)
    until(lambda: any('"lengths"' in p.read_text() for p in tmp_path.glob("root/ledger/runs/*/shown")), 30)
    seen = plait("status", *where, "--json", cwd=tmp_path)
    (running,) = json.loads(seen.stdout.splitlines()[-1])["running"]
    assert re.search(r"^words +done +100 *$", seen.stderr, re.MULTILINE), seen.stderr
    assert re.search(r"^lengths +at work +\d+ of 100", seen.stderr, re.MULTILINE), seen.stderr
    assert running["pid"] == process.pid and running["command"][0] == "run"
    plan = answered("plan", *where, "source=src", cwd=tmp_path)
    assert {s["name"]: s["state"] for s in plan["stages"]}["lengths"] == "waiting"
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    sentence = json.loads(told.splitlines()[-1])["error"]
    assert sentence.startswith("stopped by SIGTERM; finished shards are kept: run `plait run") and sentence in " ".join(
        errors.split("\n")
    )
    again = plait("cancel", *where, cwd=tmp_path)
    assert again.returncode == 2 and "no run is going on" in again.stderr and again.stderr.count("\n") <= 2
    said = plait("logs", "lengths", "--follow", *where, "--json", cwd=tmp_path)
    document = json.loads(said.stdout.splitlines()[-1])
    assert document["state"] == "ended" and document["run_id"] == running["run_id"]
    assert {line["stage"] for line in document["lines"]} == {"lengths"} and sentence in [
        line["text"] for line in document["lines"]
    ]


def test_a_killed_process_whose_parent_never_asks_for_its_end_is_not_alive():
    import psutil

    child = subprocess.Popen(["sleep", "60"])
    told = {"host": me()["host"], "pid": child.pid, "started": psutil.Process(child.pid).create_time()}
    assert is_alive_here(told)
    child.kill()
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 5)
    assert not is_alive_here(told)
    child.wait()


def test_of_several_runs_cancel_wants_one_named_and_a_killed_run_is_not_going_on(tmp_path):
    root = LocalBucket(tmp_path)
    for name in ("a1", "b2"):
        OpenRun(root, name, ["run"], "run again").open()
    root.put(f"{RUNS}/c3/started", dumps({**me(), "started": 0.0, "at": "2026-01-01T00:00:00+00:00", "command": []}))
    elsewhere = {"host": "elsewhere", "pid": 1, "started": 1.0, "command": []}
    root.put(f"{RUNS}/d4/started", dumps(elsewhere | {"at": "2026-01-01T00:00:00+00:00"}))
    assert [run["run_id"] for run in Runs(root).going()] == ["a1", "b2"]
    at = [f"root={tmp_path}", "pipeline=tests.toy:graph"]
    with pytest.raises(UserError, match=r"2 runs are going on, give one: a1 .*b2"):
        going.cancel(at, False)
    with pytest.raises(UserError, match="run c3 is not going on: a1"):
        going.cancel(["c3", *at], False)
    going.cancel(["b", *at], False)
    assert root.get(f"{RUNS}/b2/cancel") and not root.get(f"{RUNS}/a1/cancel")
    with pytest.raises(UserError, match="'zz' is no run"):
        Runs(root).pick("zz")


def test_on_s3_a_run_is_seen_heard_and_stopped_as_well(s3_endpoint, tmp_path):
    root = S3Bucket(f"s3://plait/{tmp_path.name}", s3_endpoint)
    run = OpenRun(root, "r1", ["run"], "run again")
    run.open()
    assert [going["run_id"] for going in Runs(root).going()] == ["r1"]
    run.check()
    Runs(root).ask_to_stop("r1")
    until(run.stopping)
    with pytest.raises(StoppedError, match=r"cancelled by .*; finished shards are kept: run again"):
        run.check()
    run.close()
    assert [line["level"] for line in Runs(root).log("r1")[0]] == ["info", "warning"]


def test_a_log_whose_reply_was_lost_is_neither_lost_nor_written_twice(tmp_path):
    class Lossy(LocalBucket):
        """Loses every reply once."""

        def put_if_absent(self, name, data):
            """Arrives, and says nothing."""
            won = super().put_if_absent(name, data)
            if "log.1" in name and not getattr(self, "lost", False):
                self.lost = True
                raise OSError("the reply was lost")
            return won

    root = Lossy(tmp_path)
    run = OpenRun(root, "r", [], "")
    run.say("one")
    run._try(run._put_log)
    run.say("two")
    run.close()
    run.close()
    assert [line["text"] for line in Runs(root).log("r")[0]] == ["one", "two"]


def test_the_latest_run_where_it_was_killed_is_named_with_what_to_type(tmp_path):
    root = LocalBucket(tmp_path)
    gone = {"host": "head-0", "pid": 1, "started": 1.0, "at": "2026-01-01T00:00:00+00:00"}
    root.put(f"{RUNS}/a1/started", dumps(gone | {"command": ["run", "source=a b"], "job": "plait-a1"}))
    at = [f"root={tmp_path}", "pipeline=tests.toy:graph"]
    killed = answered("status", *at, cwd=tmp_path)["killed"]
    assert (killed["run_id"], killed["job"]) == ("a1", "plait-a1")
    assert "as Ray job plait-a1" in show.killed(killed) and "`plait run 'source=a b'`" in show.killed(killed)
    assert answered("logs", *at, cwd=tmp_path)["state"] == "killed"
    OpenRun(root, "b2", ["run"], "run again").open()
    assert Runs(root).killed() is None  # whoever began later has taken over
    root.put(f"{RUNS}/c3/started", dumps(gone | {"command": []}))  # by an older plait
    assert Runs(root).killed()["job"] is None
    Ledger(root).record_run("c3", {"ok": False})
    assert Runs(root).killed() is None


class Screen:
    """What a person saw."""

    def __init__(self):
        self.seen = []

    def stage(self, *bar):
        """A bar."""
        self.seen.append(bar)

    def finished(self, entry):
        """A line."""
        self.seen.append(entry["name"])

    def note(self, sentence):
        """A sentence."""
        self.seen.append(sentence)


def test_what_a_run_shows_is_seen_elsewhere_each_line_once_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "hunter22hunter")
    here, there = Screen(), Screen()
    shown, mirror = Shown(here), Mirror(there)
    root = LocalBucket(tmp_path)
    run = OpenRun(root, "r1", [], "", shown=shown.document)
    for name in ("clips", "scores"):
        shown.stage(name, 3, 7, "hunter22hunter")
        run._put_shown()
        mirror.show(Runs(root).shown("r1"))
        shown.note(f"{name} is hunter22hunter")
        counts = dict.fromkeys(("rows_out", "empty", "filtered", "quarantined"), 1)
        shown.finished({"name": name, "state": "done", "seconds": 1.0, "metrics": {}, **counts})
    run.close()
    for _ in range(2):
        mirror.show(Runs(root).shown("r1"))
    bars = [(name, 3, 7, "***") for name in ("clips", "scores")]
    assert there.seen == [bars[0], "clips is ***", "clips", bars[1], "scores is ***", "scores"]
    assert here.seen[0] == ("clips", 3, 7, "hunter22hunter")
