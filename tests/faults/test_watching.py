"""`plait evaluate --watch` beside a training: killed, with a second watcher, each answer is drawn once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.ledger import Ledger
from infra.store import Store
from pipelines.evaluate import rows_of
from tests.conftest import REPO
from tests.pipelines.test_evaluate import SMALL, Root

WAIT_S = 200


def watcher(root: Root, near: dict[str, str], every: str = "1s", **env: str) -> subprocess.Popen[str]:
    """As a person starts it."""
    file = (root.home / f"watcher-{time.monotonic_ns()}.txt").open("w")
    command = [sys.executable, "-m", "pipelines.cli.main", "evaluate", "--watch", "--every", every]
    given = os.environ | near | {"PYTHONPATH": str(REPO)} | env
    arguments = [f"root={root.bucket.folder}", *SMALL]
    return subprocess.Popen(
        [*command, *arguments], cwd=root.home, env=given, stdout=file, stderr=file, text=True,
        # tests that were started in the background hand an ignored SIGINT down, and Python would never hear Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def scored(root: Root) -> set[int]:
    return {row["step"] for row in root.scores()}


def until(what: Any, processes: list[subprocess.Popen[str]]) -> None:
    """Wait for it, as long as somebody works."""
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end and any(one.poll() is None for one in processes), "nobody does it"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_watchers_one_of_them_killed_draw_every_answer_once_while_a_training_goes_on(
    tmp_path: Path, near: dict[str, str]
) -> None:
    root = Root(tmp_path)
    root.save(10)
    first = watcher(root, near, PLAIT_CRASH_AT="generations:committed")
    until(lambda: rows_of_ledger(root, "trials"), [first])
    second = watcher(root, near)
    try:
        until(lambda: first.poll() is not None, [first, second])
        assert first.returncode == -9
        root.save(20)
        until(lambda: scored(root) == {10, 20}, [second])
        root.save(30)
        until(lambda: scored(root) == {10, 20, 30}, [second])
    finally:
        first.kill()
        second.terminate()
        second.wait(60)
    answers = rows_of(Store(root.bucket), "generations", ("files_sha256", "question", "index"))
    counts = Counter((row["files_sha256"], row["question"], row["index"]) for row in answers)
    asked = len(rows_of(Store(root.bucket), "trials", ("question",)))
    assert set(counts.values()) == {1} and len(counts) == asked
    # what all runs together computed, of which the killed one's was adopted
    computed = sum(done["computed"] for done in Ledger(root.bucket).dones("generations"))
    assert computed == asked


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_watcher_that_waits_for_its_next_look_is_stopped_by_one_signal(tmp_path, near, number, code) -> None:
    root = Root(tmp_path)
    root.save(10)
    one = watcher(root, near, every="60s")
    until(lambda: "Champion" in said(root) or "composition/held" in said(root), [one])
    time.sleep(2)
    one.send_signal(number)
    assert one.wait(15) == code, said(root)
    assert ("Stopped watching" in said(root)) == (code == 0)


@pytest.mark.slow
def test_a_signal_behind_the_last_safe_point_of_a_look_ends_the_watching_too(tmp_path, near) -> None:
    root = Root(tmp_path)
    root.save(10)
    one = watcher(root, near, every="60s", PLAIT_PAUSE_AT="marks:done")
    until(lambda: psutil.Process(one.pid).status() == psutil.STATUS_STOPPED, [one])
    one.send_signal(signal.SIGTERM)
    one.send_signal(signal.SIGCONT)
    assert one.wait(30) == 0 and "Stopped watching" in said(root), said(root)
    assert scored(root) == {10}


def said(root: Root) -> str:
    return "".join(path.read_text() for path in root.home.glob("watcher-*.txt"))


def rows_of_ledger(root: Root, dataset: str) -> bool:
    return bool(Ledger(root.bucket).dones(dataset))
