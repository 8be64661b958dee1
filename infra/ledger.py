"""The folder of a materialisation: write-once numbered objects; the highest number wins.

    ledger/<dataset>/<key>/key.json      the tree whose hash is the key, and notes that are not hashed
                           claim.N       who works: saves work, does not guard truth
                           beat.N        the claim's heartbeat (overwritten)
                           plan.N        the shards
                           shard.N.i     fragments, counts and rest of one shard
                           rest.N        every unit that gave no row, with its reason
                           curve.N       what a job has measured so far (overwritten too; pipelines/live.py)
                           metrics.N, picture.N.*   what a job reported, for MLflow
                           done.N        the published snapshot
                           told.N        MLflow knows
    ledger/runs/<run id>.json            which materialisations a run asked for
    ledger/runs/<run id>/...             a run while it goes on, and its log (infra/runs.py)
    ledger/denied/<sha256>.json          raw content that was taken down
    ledger/locks/<name>/...              who does what only one may do at a time, by claims as above

This is the whole durable state: losing Ray, the driver, MLflow or the machine loses time, never truth.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from infra.bucket import Bucket
from infra.types import PlaitError, Snapshot, now_utc

ROOT = "ledger"
FORGOTTEN = "forgotten"
COMPACTED = "compacted"
BEAT_S = 5.0
STALE_S = float(os.environ.get("PLAIT_STALE_S", "45"))
"""How long a claim of another host stands without a heartbeat."""
_HELD: set[tuple[str, int]] = set()
"""(folder, number) of the claims that this process holds."""


def dumps(document: Mapping[str, Any]) -> bytes:
    """The one way a document is written: sorted keys, readable, with a nonce so that equal texts have one author."""
    return json.dumps({**document, "nonce": os.urandom(8).hex()}, indent=1, sort_keys=True).encode()


@dataclass(frozen=True)
class Folder:
    """One materialisation's folder."""

    bucket: Bucket
    dataset: str
    key: str

    @property
    def path(self) -> str:
        """The folder's name in the bucket."""
        return f"{ROOT}/{self.dataset}/{self.key}"

    def names(self) -> set[str]:
        """Names of the objects in the folder."""
        cut = len(self.path) + 1
        return {name[cut:] for name in self.bucket.names(self.path)}

    def put(self, name: str, document: Mapping[str, Any]) -> bool:
        """Put a JSON document if absent; whether ours is the one that is there."""
        return self.bucket.put_if_absent(f"{self.path}/{name}", dumps(document))

    def get(self, name: str) -> dict[str, Any] | None:
        """A JSON document, or None."""
        data = self.bucket.get(f"{self.path}/{name}")
        return json.loads(data) if data is not None else None

    def put_bytes(self, name: str, data: bytes) -> None:
        """Put an object whose name no other writer uses."""
        self.bucket.put_if_absent(f"{self.path}/{name}", data)

    def get_bytes(self, name: str) -> bytes:
        """An object that must be there."""
        data = self.bucket.get(f"{self.path}/{name}")
        if data is None:
            raise FileNotFoundError(f"{self.bucket.uri}/{self.path}/{name}")
        return data

    def last(self, kind: str, names: set[str] | None = None) -> int:
        """The highest N of `kind.N`, or 0."""
        found = self.names() if names is None else names
        return max((int(n.split(".")[1]) for n in found if n.startswith(kind + ".") and n.split(".")[1].isdigit()), default=0)  # fmt: skip  # noqa: E501

    def done(self) -> dict[str, Any] | None:
        """The published truth of this key, or None."""
        number = self.last("done")
        document = self.get(f"done.{number}") if number else None
        return document if document and document["state"] != FORGOTTEN else None

    def holder(self) -> dict[str, Any] | None:
        """The claim of a living driver, judged without waiting: here by the process table, elsewhere by its beat."""
        number = self.last("claim")
        claim = self.get(f"claim.{number}") if number else None
        if claim is None or claim.get("released"):
            return None
        beat = self.bucket.get(f"{self.path}/beat.{number}")
        return claim if is_alive(claim, beat) else None

    def unfinished_plan(self) -> int:
        """The number of the plan that no `done` has followed, or 0."""
        number, last = self.last("plan"), self.last("done")
        document = self.get(f"done.{last}") if last else None
        return number if number > (document["plan"] if document else 0) else 0


class Ledger:
    """All materialisations of a root."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def folder(self, dataset: str, key: str) -> Folder:
        """The folder of one materialisation."""
        return Folder(self.bucket, dataset, key)

    def dones(self, dataset: str) -> list[dict[str, Any]]:
        """The newest `done` of every key of a dataset, oldest first."""
        newest: dict[str, int] = {}
        prefix = f"{ROOT}/{dataset}"
        for name in self.bucket.names(prefix):
            key, _, leaf = name[len(prefix) + 1 :].partition("/")
            if leaf.startswith("done."):
                newest[key] = max(newest.get(key, 0), int(leaf.split(".")[1]))
        documents = [self.folder(dataset, key).get(f"done.{n}") for key, n in newest.items()]
        return sorted((d for d in documents if d and d["state"] != FORGOTTEN), key=lambda d: d["at"])

    def every(self, dataset: str) -> list[dict[str, Any]]:
        """Every `done` that was ever put for a dataset and not forgotten, oldest first: forced reruns included."""
        prefix = f"{ROOT}/{dataset}"
        keys = {name[len(prefix) + 1 :].partition("/")[0] for name in self.bucket.names(prefix)}
        return sorted((d for key in keys for d in self.history(dataset, key)), key=lambda d: d["at"])

    def history(self, dataset: str, key: str) -> list[dict[str, Any]]:
        """Every `done` of one key, oldest first; none where the last one says that it was forgotten.

        One that was compacted stands for those before it: the same rows, in files that a collection spares.
        """
        folder = self.folder(dataset, key)
        numbers = sorted(int(n.split(".")[1]) for n in folder.names() if n.startswith("done."))
        documents = [d for n in numbers if (d := folder.get(f"done.{n}"))]
        if documents and documents[-1]["state"] == FORGOTTEN:
            return []
        return documents[max((i for i, d in enumerate(documents) if d["why"] == COMPACTED), default=0) :]

    def deny(self, digest: str, document: Mapping[str, Any]) -> None:
        """Take raw content down, for good."""
        self.bucket.put_if_absent(f"{ROOT}/denied/{digest}.json", dumps(document))

    def denied(self) -> list[str]:
        """SHA-256 of all raw content that was taken down."""
        return sorted(n.rsplit("/", 1)[1].removesuffix(".json") for n in self.bucket.names(f"{ROOT}/denied"))

    def datasets(self) -> list[str]:
        """Every dataset that has a folder here."""
        found = {n.split("/")[1] for n in self.bucket.names(ROOT) if n.count("/") >= 3}
        return sorted(found - {"runs", "denied", "locks"})

    def record_run(self, run_id: str, document: Mapping[str, Any]) -> None:
        """Put the record of a run: the materialisations that it asked for, and what stood beside them."""
        self.bucket.put(f"{ROOT}/runs/{run_id}.json", dumps({**document, "stood": self.stood()}))

    def runs(self) -> list[str]:
        """Ids of all recorded runs, oldest first (ids begin with the time); what else a run leaves is in a folder."""
        names = [n.removeprefix(f"{ROOT}/runs/") for n in self.bucket.names(f"{ROOT}/runs")]
        return sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and "/" not in n)

    def stood(self) -> dict[str, str]:
        """Dataset to key of the materialisations that the last run which had it stood on.

        A run of another pipeline (an evaluation) has stages of its own, and hands on what it found.
        """
        runs = self.runs()
        last = self.run(runs[-1]) if runs else {"stages": []}
        return last.get("stood", {}) | {stage["name"]: stage["key"] for stage in last["stages"] if stage["key"]}

    def run(self, run_id: str) -> dict[str, Any]:
        """The record of one run."""
        data = self.bucket.get(f"{ROOT}/runs/{run_id}.json")
        if data is None:
            raise FileNotFoundError(run_id)
        return json.loads(data)


def snapshot_of(done: Mapping[str, Any]) -> Snapshot:
    """The snapshot that a `done` published."""
    return Snapshot(**done["snapshot"])


@lru_cache(maxsize=1)
def me() -> dict[str, Any]:
    """This process, so that others can tell whether it lives."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_alive_here(holder: Mapping[str, Any]) -> bool:
    """Whether a process of this host that wrote `me()` still runs. One that was killed may stay in the table: process 1
    of a container seldom asks for the end of others."""
    import psutil

    try:
        found = psutil.Process(holder["pid"])
        return found.create_time() == holder["started"] and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_alive(holder: Mapping[str, Any], beat: bytes | None) -> bool:
    """Whether a process that wrote `me()` and `at` still runs: elsewhere by the age of its beat, by both clocks."""
    if holder["host"] == socket.gethostname():
        return is_alive_here(holder)
    last = datetime.datetime.fromisoformat(beat.decode() if beat else holder["at"])
    return (datetime.datetime.now(datetime.UTC) - last).total_seconds() < STALE_S


def is_dead(claim: Mapping[str, Any], folder: Folder, number: int, seen: dict[str, Any]) -> bool:
    """Same host: by the process table, at once. Elsewhere: when its heartbeat has not moved for STALE_S here."""
    if claim["host"] == socket.gethostname():
        if claim["pid"] == os.getpid() and (folder.path, number) not in _HELD:
            return True  # ours of an earlier run in this process, which could not put its release
        return not is_alive_here(claim)
    beat = folder.bucket.get(f"{folder.path}/beat.{number}")
    if seen.get("beat") != beat or "since" not in seen:
        seen.update(beat=beat, since=time.monotonic())
    return time.monotonic() - seen["since"] > STALE_S


class Claim:
    """Who works on a key. `wait` returns True when the work is ours, False when somebody else has finished it."""

    def __init__(self, folder: Folder, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self.number = 0
        self._stop = threading.Event()

    def wait(self, poll_s: float = 0.5, on_wait: Any = None, published: int = 0) -> bool:
        """Take the claim, waiting while a living driver holds it and publishes nothing newer than `published`."""
        seen: dict[str, Any] = {}
        while True:
            names = self.folder.names()
            if self.folder.last("done", names) > published:
                return False
            number = self.folder.last("claim", names)
            holder = self.folder.get(f"claim.{number}") if number else None
            if holder is None or holder.get("released") or is_dead(holder, self.folder, number, seen):
                mine = {**me(), "run_id": self.run_id, "at": now_utc()}
                if self.folder.put(f"claim.{number + 1}", mine):
                    self.number = number + 1
                    _HELD.add((self.folder.path, self.number))
                    threading.Thread(target=self._beat, daemon=True).start()
                    return True
            elif on_wait:
                on_wait(holder)
            time.sleep(poll_s)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(PlaitError, OSError):  # a store that is away for a moment: the next beat tries again
                self.folder.bucket.put(f"{self.folder.path}/beat.{self.number}", now_utc().encode())

    def release(self) -> None:
        """Let the next one in without waiting for our heartbeat to stop."""
        self._stop.set()
        _HELD.discard((self.folder.path, self.number))
        if self.number:
            self.folder.put(f"claim.{self.number + 1}", {"released": True, "run_id": self.run_id, "at": now_utc()})
