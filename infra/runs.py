"""Runs of a root: which are going on, what they said, and the wish that one stops. All of it lies in the bucket.

ledger/runs/<run id>.json       the record, put when a run ends (infra/ledger.py)
ledger/runs/<run id>/started    host, process, command, the Ray job that it is
                     beat       overwritten every few seconds while it works
                     cancel     put by whoever wants it to stop
                     log.N      JSON lines: at, stage, worker, level, text
                     shown      what it shows on its screen, overwritten every few seconds while that changes
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.bucket import Bucket
from infra.ledger import BEAT_S, ROOT, STALE_S, dumps, is_alive, me
from infra.types import PlaitError, StoppedError, UserError, now_utc, without_secrets

RUNS = f"{ROOT}/runs"
WATCH_S = 1.0
LOOK_S = 3.0
"""Between looks for a wish to stop, and between chunks of the log."""
CHUNK_BYTES = 256 << 10
NAMED_BAD_ROWS = 5
"""Quarantined rows of a stage that the log names; the others it counts."""


class OpenRun:
    """A run while it goes on: registered, beating, writing its log, and looking whether it is to stop."""

    def __init__(
        self,
        bucket: Bucket,
        run_id: str,
        command: Sequence[str],
        resume: str,
        job: str | None = None,
        shown: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.bucket = bucket
        self.run_id = run_id
        self.path = f"{RUNS}/{run_id}"
        self.command = list(command)
        self.resume = resume
        self.job = job
        self._shown, self._shown_last = shown, b"{}"
        self.stopped: str | None = None
        self._chunk = 0
        self._pending: list[bytes] = []
        self._num_bytes = 0
        self._bad: dict[str, int] = {}
        self._lock = threading.RLock()  # a signal may ask to stop while its thread says something
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Register, and begin to watch."""
        self.bucket.put_if_absent(
            f"{self.path}/started", dumps({**me(), "at": now_utc(), "command": self.command, "job": self.job})
        )
        self.say(f"the run begins: plait {' '.join(self.command)}".rstrip())
        self._thread = threading.Thread(target=self._watch, name="plait-run", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The last of the log. Nothing that fails here hides why a run failed."""
        for stage, count in self._bad.items():
            if count > NAMED_BAD_ROWS:
                self.say(f"{count} units were quarantined in all: plait quarantine {stage}", stage, level="warning")
        self._ended.set()
        if self._thread is not None:
            self._thread.join(LOOK_S)
        self._try(self._put_log)
        self._try(self._put_shown)

    # --- what it says ----------------------------------------------------------------------------------------

    def say(self, text: str, stage: str = "", worker: str = "driver", level: str = "info", at: str = "") -> None:
        """A line for the log."""
        line = {"at": at or now_utc(), "stage": stage, "worker": worker, "level": level, "text": without_secrets(text)}
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            self._pending.append(data)
            self._num_bytes += len(data)

    def heard(self, stage: str, report: Mapping[str, Any]) -> None:
        """What was captured while a worker ran a task (`infra/capture.py`)."""
        if report["left_out"]:
            self.say(f"({report['left_out']} lines left out before these)", stage, report["worker"])
        for line in report["lines"]:
            self.say(line["text"], stage, report["worker"], line["level"], line["at"])

    def left(self, stage: str, rest: Sequence[Mapping[str, Any]]) -> None:
        """The units that gave no row: of those in quarantine the first ones are named."""
        for entry in rest:
            if entry["state"] == "quarantined":
                self._bad[stage] = self._bad.get(stage, 0) + 1
                if self._bad[stage] <= NAMED_BAD_ROWS:
                    self.say(f"quarantined {entry['label']}: {entry['reason']}", stage, level="warning")

    # --- whether it goes on ----------------------------------------------------------------------------------

    def stop(self, how: str) -> None:
        """Ask this run to stop at its next safe point; `how` begins its last sentence ("cancelled by HOST")."""
        if self.stopped is None:
            self.stopped = how
            self.say(f"{how}: stopping at the next safe point", level="warning")

    def stopping(self) -> bool:
        """Whether somebody asked it to."""
        return self.stopped is not None

    def check(self) -> None:
        """A safe point: raise StoppedError if the run is to stop."""
        if self.stopped is not None:
            raise StoppedError(f"{self.stopped}; finished shards are kept: {self.resume}")

    def _watch(self) -> None:
        beaten = looked = -STALE_S
        while not self._ended.wait(WATCH_S):
            now = time.monotonic()
            if now - beaten >= BEAT_S:
                beaten = now
                self._try(lambda: self.bucket.put(f"{self.path}/beat", now_utc().encode()))
            if now - looked >= LOOK_S or self._num_bytes >= CHUNK_BYTES:
                looked = now
                self._try(self._put_log)
                self._try(self._put_shown)
                self._try(self._look)

    def _look(self) -> None:
        if self.stopped is None and (data := self.bucket.get(f"{self.path}/cancel")) is not None:
            wish = json.loads(data)
            self.stop(f"cancelled by {wish['user']} on {wish['host']}")

    def _put_log(self) -> None:
        with self._lock:
            data = b"".join(self._pending)
            number = self._chunk + 1
        if not data:
            return
        name = f"{self.path}/log.{number}"
        if not self.bucket.put_if_absent(name, data):  # an earlier try arrived, and its reply did not
            data = self.bucket.get(name) or b""
        with self._lock:
            rest = b"".join(self._pending)[len(data) :]
            self._pending, self._num_bytes, self._chunk = ([rest] if rest else []), len(rest), number

    def _put_shown(self) -> None:
        data = json.dumps(self._shown()).encode()
        if data != self._shown_last:
            self.bucket.put(f"{self.path}/shown", data)
            self._shown_last = data

    @staticmethod
    def _try(act: Callable[[], Any]) -> None:
        """A store that is away for a while costs a line of the log or a beat, never the run."""
        try:
            act()
        except (PlaitError, OSError):
            return


class Runs:
    """All runs of a root, as seen from any host."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        names = [n[len(RUNS) + 1 :] for n in bucket.names(RUNS)]
        self._names = set(names)
        self.ids = sorted({n.partition("/")[0].removesuffix(".json") for n in names})

    def pick(self, prefix: str | None) -> str:
        """The run whose id begins so, else the latest."""
        if not self.ids:
            raise UserError(f"no run has been recorded under {self.bucket.uri} yet: `plait run` makes one")
        if prefix is None:
            return self.ids[-1]
        found = [i for i in self.ids if i.startswith(prefix)]
        if prefix in found or len(found) == 1:
            return prefix if prefix in found else found[0]
        if found:
            raise UserError(f"{prefix!r} begins several runs ({', '.join(found[-4:])}): give more of the id")
        raise UserError(f"{prefix!r} is no run of {self.bucket.uri}: the last ones are {', '.join(self.ids[-4:])}")

    def has_ended(self, run_id: str) -> bool:
        """Whether its record was put."""
        return self.bucket.size(f"{RUNS}/{run_id}.json") is not None

    def going(self) -> list[dict[str, Any]]:
        """Runs that are at work: run_id, host, pid, at (when it began), command, job (of Ray). A killed run is not."""
        found: list[dict[str, Any]] = []
        for run_id in self.ids:
            if f"{run_id}.json" not in self._names and f"{run_id}/started" in self._names:
                started = json.loads(self.bucket.get(f"{RUNS}/{run_id}/started") or b"{}")
                if started and self.is_living(run_id, started):
                    found.append(_seen(run_id, started))
        return found

    def killed(self) -> dict[str, Any] | None:
        """The latest run, as `going` tells of it, if it was killed: it works no more and has left no record."""
        latest = self.ids[-1] if self.ids else ""
        if f"{latest}/started" not in self._names or self.has_ended(latest):
            return None
        started = json.loads(self.bucket.get(f"{RUNS}/{latest}/started") or b"{}")
        return _seen(latest, started) if started and not self.is_living(latest, started) else None

    def is_living(self, run_id: str, started: Mapping[str, Any] | None = None) -> bool:
        """On this host by the process table; elsewhere by the age of its beat, by the clocks of both."""
        begun = started or json.loads(self.bucket.get(f"{RUNS}/{run_id}/started") or b"{}")
        if not begun or self.has_ended(run_id):
            return False
        return is_alive(begun, self.bucket.get(f"{RUNS}/{run_id}/beat"))

    def shown(self, run_id: str) -> dict[str, Any]:
        """What the run shows on its screen: {stages, said} (`pipelines/shown.py`), {} before it has shown a thing."""
        return json.loads(self.bucket.get(f"{RUNS}/{run_id}/shown") or b"{}")

    def record(self, run_id: str) -> dict[str, Any] | None:
        """What the run left when it ended."""
        data = self.bucket.get(f"{RUNS}/{run_id}.json")
        return json.loads(data) if data else None

    def has_begun(self, run_id: str) -> bool:
        """Whether the run has registered."""
        return self.bucket.size(f"{RUNS}/{run_id}/started") is not None

    def ask_to_stop(self, run_id: str) -> None:
        """Put the wish; the run finds it within seconds."""
        wish = {"host": socket.gethostname(), "user": _user(), "at": now_utc()}
        self.bucket.put_if_absent(f"{RUNS}/{run_id}/cancel", dumps(wish))

    def log(self, run_id: str, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Lines of the chunks behind number `after`, and the number of the last chunk."""
        lines: list[dict[str, Any]] = []
        while (data := self.bucket.get(f"{RUNS}/{run_id}/log.{after + 1}")) is not None:
            lines += [json.loads(line) for line in data.splitlines()]
            after += 1
        return lines, after


def _seen(run_id: str, started: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: started[name] for name in ("host", "pid", "at", "command")}
    return {"run_id": run_id, **told, "job": started.get("job")}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())
