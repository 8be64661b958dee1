"""What plait needs of a store, tried out one by one on a throwaway folder below the root (`plait doctor --storage`).

Bounded: about 800 requests, 40 MB up and down. What a store fails at is said together with what it would break.
"""

from __future__ import annotations

import copy
import datetime
import email.utils
import hashlib
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.bucket import Bucket
from infra.s3_bucket import S3Bucket
from infra.types import PlaitError

MAX_SKEW_S = 5.0
RACERS = 8
ROUNDS = 4
SMALL_OBJECTS = 200
LARGE_BYTES = 17 << 20
"""Three parts: boto3 begins to upload in parts of 8 MiB at 8 MiB."""
PAGE_NAMES = 7
ODD_NAMES = ("a b", "a+b", "50%", "x=1&y=2", "q?.mp4", "n#1", "it's", "(1)", "~tmp", "\u00fcber", "\u6620\u50cf.mp4", "a.b", "a-b", "a/b", "A", "\U0001f600")  # fmt: skip  # noqa: E501


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Check:
    """One thing that plait needs of a store."""

    what: str
    breaks: str
    """What a store that cannot do it would break."""
    look: Callable[[Bucket], str]
    """Look at an empty bucket; what was found, or PlaitError."""


class NotGiven(PlaitError):  # noqa: N818
    """The store does not give what plait needs of it."""


def examine(root: Bucket, checks: Sequence[Check] | None = None) -> list[Finding]:
    """Every check (or these), each in a folder of its own; one that fails never stops the others."""
    place = f"doctor/{time.time_ns()}-{os.urandom(4).hex()}"
    try:
        return [_finding(check, root.below(f"{place}/{number}")) for number, check in enumerate(checks or CHECKS)]
    finally:
        root.clear(place)


def _finding(check: Check, bucket: Bucket) -> Finding:
    try:
        return Finding(check.what, True, check.look(bucket))
    except (PlaitError, OSError) as error:
        return Finding(check.what, False, f"{error}; {check.breaks}")


def one_winner(bucket: Bucket) -> str:
    """Many writers of one name: exactly one may win, and all must read its bytes."""
    for number in range(ROUNDS):
        bodies = [f"writer {i} {os.urandom(8).hex()}".encode() for i in range(RACERS)]
        with ThreadPoolExecutor(RACERS) as pool:
            wins = list(pool.map(lambda body, name=f"race.{number}": bucket.put_if_absent(name, body), bodies))
        if wins.count(True) != 1:
            raise NotGiven(f"{bucket.uri} let {wins.count(True)} of {RACERS} writers of one name win: use a store with conditional puts (If-None-Match)")  # fmt: skip  # noqa: E501
        if bucket.get(f"race.{number}") != bodies[wins.index(True)]:
            raise NotGiven("the bytes of a writer that lost are there")
    return f"one of {RACERS} racing writers won, {ROUNDS} times"


def _existing_stays(bucket: Bucket) -> str:
    bucket.put("plain", b"first")
    if bucket.put_if_absent("plain", b"second"):
        raise NotGiven("a conditional put replaced an object that was there")
    if bucket.get("plain") != b"first":
        raise NotGiven("a refused put left its bytes")
    if not bucket.put_if_absent("plain", b"first"):
        raise NotGiven("a put that was sent again after a lost reply does not find its own bytes")
    return "an object that is there stays, and its bytes are read back after the refusal"


def _reads_after_writes(bucket: Bucket) -> str:
    other: Bucket = pickle.loads(pickle.dumps(bucket))  # as another process: a client of its own
    for number in range(20):
        body = os.urandom(64)
        bucket.put("beat", body)  # replaced again and again
        bucket.put(f"new.{number}", body)
        if not bucket.get("beat") == other.get("beat") == other.get(f"new.{number}") == body:
            raise NotGiven(f"object {number} was not read as it had just been written")
    return "20 new and 20 replaced objects were read at once, by two clients"


def _lists_after_writes(bucket: Bucket) -> str:
    names = [f"many/{number:04d}" for number in range(SMALL_OBJECTS)]
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: bucket.put(name, name.encode()), names))
    rate = SMALL_OBJECTS / (time.monotonic() - started)
    found = bucket.names("many")
    if found != names:
        raise NotGiven(f"{len(names)} objects were put and {len(found)} were listed")
    bucket.put("folder", b"")
    bucket.put("manyfold", b"")
    if bucket.names("many") != names or "folder" not in bucket.names(""):
        raise NotGiven("a listing of one folder holds objects of another")
    return f"{SMALL_OBJECTS} small objects were listed at once; {rate:.0f} puts a second"


def _pages(bucket: Bucket) -> str:
    names = sorted([f"p/{number:03d}" for number in range(30)] + ["p/0/x", "p/0-x", "p/0.x"], key=str.encode)
    for name in reversed(names):
        bucket.put(name, b"")
    paged = copy.copy(bucket)
    paged.page_names = PAGE_NAMES
    if (found := paged.names("p")) != names:
        raise NotGiven(f"pages of {PAGE_NAMES} names gave {len(found)} of {len(names)} names, or another order")
    for at in (0, PAGE_NAMES - 1, 17, len(names) - 1):
        if [entry.path for entry in paged.entries("p", after=names[at])] != names[at + 1 :]:
            raise NotGiven(f"a listing that goes on behind {names[at]!r} is not the rest")
    return f"{len(names)} names in pages of {PAGE_NAMES}, in order; begun again at four places"


def _ranges(bucket: Bucket) -> str:
    body = os.urandom(100_000)
    bucket.put("ranged", body)
    with tempfile.TemporaryDirectory(prefix="plait-") as folder:
        target = Path(folder, "part")
        for offset, size in ((0, 1), (12_345, 6_789), (99_990, 100), (100_000, 5), (7, 0)):
            bucket.part("ranged", offset, size, target)
            if (found := target.read_bytes()) != body[offset : offset + size]:
                raise NotGiven(f"{size} bytes from {offset} on came as {len(found)} bytes, or others")
    return "five ranges of an object came alone"


def _large(bucket: Bucket) -> str:
    with tempfile.TemporaryDirectory(prefix="plait-") as folder:
        source = Path(folder, "large")
        source.write_bytes(os.urandom(1 << 20) * (LARGE_BYTES >> 20))
        wanted = _sha256(source)
        started = time.monotonic()
        bucket.upload("large", source)
        up_s = time.monotonic() - started
        if bucket.size("large") != LARGE_BYTES:
            raise NotGiven(f"{LARGE_BYTES} bytes were uploaded in parts, {bucket.size('large')} are there")
        with bucket.local("large") as path:
            if _sha256(path) != wanted:
                raise NotGiven("an object that was uploaded in parts came back as other bytes")
    return f"{LARGE_BYTES >> 20} MiB in parts came back with their SHA-256; {LARGE_BYTES / 1e6 / up_s:.0f} MB/s up"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _deletes(bucket: Bucket) -> str:
    bucket.put("gone", b"x")
    bucket.delete("gone")
    bucket.delete("gone")  # none is fine
    if bucket.get("gone") is not None or bucket.size("gone") is not None or bucket.names(""):
        raise NotGiven("an object that was deleted is still there")
    if not bucket.put_if_absent("gone", b"y"):
        raise NotGiven("a name that was deleted cannot be put again")
    return "deleted objects are gone at once, and their names are free"


def _odd_names(bucket: Bucket) -> str:
    for name in ODD_NAMES:
        bucket.put(f"odd/{name}", name.encode())
    found = bucket.names("odd")
    lost = [name for name in ODD_NAMES if f"odd/{name}" not in found or bucket.get(f"odd/{name}") != name.encode()]
    if lost:
        raise NotGiven(f"{len(lost)} of {len(ODD_NAMES)} names came back otherwise, {lost[0]!r} among them")
    if found != sorted(found, key=str.encode):
        raise NotGiven("names are not listed in the order of their bytes")
    return f"{len(ODD_NAMES)} names with blanks, signs and letters of other scripts came back"


def clock(bucket: Bucket) -> str:
    """The store's clock against ours: heartbeats and the age of runs are read by it."""
    if isinstance(bucket, S3Bucket):
        there = email.utils.parsedate_to_datetime(bucket.date())
        skew = abs((there - datetime.datetime.now(datetime.UTC)).total_seconds())
    else:
        name = f"clock-{os.urandom(4).hex()}"
        bucket.put(name, b"")
        with bucket.local(name) as path:
            skew = abs(path.stat().st_mtime - time.time())
        bucket.delete(name)
    if skew > MAX_SKEW_S:
        raise NotGiven(f"the clock here is {skew:.0f} s from that of {bucket.uri}: set it by NTP")
    return f"within {max(1.0, skew):.0f} s of the store's"


def _lance(bucket: Bucket) -> str:
    """Two writers commit to one dataset at the same time: one of them may be refused, and comes second."""
    from infra import commits
    from infra.store import Store

    own = pa.schema([("number", pa.int64())])

    def publish(writer: int) -> int:
        store = Store(bucket)
        row: dict[str, Any] = {"key": os.urandom(16), "parents": [], "label": "", "number": writer}
        staged = store.stage("probe", [row], own)
        return commits.publish_full(store, "probe", own, staged.fragments, f"stamp.{writer}", 0)

    with ThreadPoolExecutor(2) as pool:
        versions = sorted(pool.map(publish, range(2)))
    if versions != [1, 2]:
        raise NotGiven(f"two writers published versions {versions} where 1 and 2 were to be")
    if Store(bucket).snapshot("probe", 1).rows != 1:
        raise NotGiven("a published version does not hold its row")
    return "two racing commits of Lance became two versions"


CHECKS = (
    Check("conditional put", "two drivers would both take one claim, and publish over each other", one_winner),
    Check("existing object", "a plan or a `done` could be replaced after others have read it", _existing_stays),
    Check("read after write", "a run would not see its own shards and heartbeats", _reads_after_writes),
    Check("list after write", "finished shards and published versions would be overlooked", _lists_after_writes),
    Check("paged listing", "files of a large source would be left out in silence", _pages),
    Check("ranged reads", "members of tar shards and Lance's rows would be other bytes", _ranges),
    Check("large objects", "checkpoints would be damaged", _large),
    Check("delete", "`plait gc` and `forget --purge` would leave bytes behind", _deletes),
    Check("names", "files with such names would be listed and then not found", _odd_names),
    Check("clock", "drivers on other machines would be taken for dead", clock),
    Check("Lance commits", "nothing could be published, or two commits would overwrite each other", _lance),
)
