"""What a run needs of its surroundings, looked at one by one: each finding is one sentence."""

from __future__ import annotations

import datetime
import email.utils
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bucket import Bucket
from infra.folder_bucket import LocalBucket
from infra.s3_bucket import S3Bucket
from infra.types import PlaitError, without_secrets

MAX_SKEW_S = 5.0
MIN_FREE_BYTES = 2 << 30
RACERS = 8


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    said: str


def examine(root: Bucket, source: Bucket | None, tracker: Callable[[], Any], address: str | None) -> list[Finding]:
    """Every check; a check that fails never stops the others."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("conditional put", lambda: _one_winner(root)),
        ("clock", lambda: _clock(root)),
        ("disk", lambda: _disk(root)),
        ("source", lambda: _source(source)),
        ("MLflow", lambda: _mlflow(tracker)),
        ("Ray", lambda: _ray(address)),
    ]
    return [_finding(what, check) for what, check in checks]


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except PlaitError as error:
        return Finding(what, False, str(error))


def _packages() -> str:
    """Installed versions against the bounds of this package."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in importlib.metadata.requires("plait") or []]
    wrong: list[str] = []
    for need in (r for r in wanted if r.marker is None):
        found = importlib.metadata.version(need.name)
        if not need.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{need.name} {found} (wanted {need.specifier})")
    if wrong:
        raise PlaitError(f"{', '.join(wrong)}: install plait again in a fresh environment")
    return f"{sum(r.marker is None for r in wanted)} packages within their bounds"


def _one_winner(root: Bucket) -> str:
    """Many writers of one name: exactly one may win, or nothing here can be trusted."""
    name = f"doctor/{time.time_ns()}-{os.urandom(4).hex()}"
    bodies = [f"writer {i} {os.urandom(8).hex()}".encode() for i in range(RACERS)]
    with ThreadPoolExecutor(RACERS) as pool:
        wins = list(pool.map(lambda body: root.put_if_absent(name, body), bodies))
    root.delete(name)
    if wins.count(True) != 1:
        raise PlaitError(f"{root.uri} let {wins.count(True)} of {RACERS} writers of one name win: use a store with conditional puts (If-None-Match)")  # fmt: skip  # noqa: E501
    return f"one of {RACERS} racing writers won at {root.uri}"


def _clock(root: Bucket) -> str:
    """The store's clock against ours: heartbeats and the age of runs are read by it."""
    if isinstance(root, S3Bucket):
        date = root.date()
        skew = abs((email.utils.parsedate_to_datetime(date) - datetime.datetime.now(datetime.UTC)).total_seconds())
    else:
        name = f"doctor/clock-{os.urandom(4).hex()}"
        root.put(name, b"")
        with root.local(name) as path:
            skew = abs(path.stat().st_mtime - time.time())
        root.delete(name)
    if skew > MAX_SKEW_S:
        raise PlaitError(f"the clock here is {skew:.0f} s from that of {root.uri}: set it by NTP")
    return f"within {max(1.0, skew):.0f} s of the store's"


def _disk(root: Bucket) -> str:
    folder = root.folder if isinstance(root, LocalBucket) else Path.cwd()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise PlaitError(f"{folder} has {free / 1e9:.1f} GB left: make room")
    return f"{free / 1e9:.0f} GB free at {folder}"


def _source(source: Bucket | None) -> str:
    if source is None:
        return "none given: the sample corpus will be used"
    first = next(iter(source.entries()), None)
    if first is None:
        raise PlaitError(f"{source.uri} holds no file: give source=DIR or source=s3://bucket/prefix")
    with source.local(first.path) as path, path.open("rb") as file:
        file.read(1)
    return f"{source.uri} can be listed and read"


def _mlflow(tracker: Callable[[], Any]) -> str:
    made = tracker()
    if made is None:
        return "tracking is off"
    if made.trouble:
        raise PlaitError(f"{made.trouble}: a run would go on without it, and `plait sync` tells it later")
    return f"reachable at {without_secrets(made.uri)}"


def _ray(address: str | None) -> str:
    if not address and not os.environ.get("RAY_ADDRESS"):
        return f"private, on this machine: {os.cpu_count()} CPUs"
    from infra.cluster import connect, disconnect, token_is_given

    resources = connect(address, None).cluster_resources()
    disconnect()
    with_token = "with our token" if token_is_given() else "without a token"
    return f"reachable {with_token}: {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs"
