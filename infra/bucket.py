"""Objects by name: the one interface over a local folder (`folder_bucket.py`) and an S3 prefix (`s3_bucket.py`).

The ledger stands on one promise, put-if-absent: of all who put a name, exactly one wins and everybody
reads the winner's bytes.

    local  temp file, fsync, os.link: an `O_EXCL` file killed half-way would stay empty for ever
    S3     If-None-Match: *; on 412 the object is read back and compared, because boto3 retries its own put
           and reports 412 for the write that it won. Bodies therefore carry a nonce.

Credentials come from the environment only and are in no attribute of these classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from infra.types import UserError

CLEAR_THREADS = 16


@dataclass(frozen=True)
class Entry:
    """One object as listed: its name, size and a stamp that changes when the bytes may have."""

    path: str
    size_bytes: int
    stamp: str
    left_out: str = ""
    """Why this is no object, where it lies among objects (a link to a folder, a pipe): for `Bucket.listing`."""


class Bucket:
    """Objects under one prefix. Names are relative, with forward slashes, and cannot leave the prefix."""

    uri: str
    page_names: int = 1000
    """Names that a request of a listing asks for, where a listing is made of requests."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Put `data` unless the name exists; whether what is there now is ours."""
        raise NotImplementedError

    def put(self, name: str, data: bytes) -> None:
        """Put, replacing: only for what nobody decides by (heartbeats)."""
        raise NotImplementedError

    def upload(self, name: str, source: Path) -> None:
        """Copy a local file here."""
        raise NotImplementedError

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        raise NotImplementedError

    def delete(self, name: str) -> None:
        """Remove an object; none is fine."""
        raise NotImplementedError

    def clear(self, prefix: str) -> None:
        """Remove all objects below a folder, and the folder."""
        with ThreadPoolExecutor(CLEAR_THREADS) as threads:
            list(threads.map(self.delete, self.names(prefix)))

    def entries(self, prefix: str = "", after: str = "") -> Iterator[Entry]:
        """Every object below a folder, in the order of their names as UTF-8; those behind `after`, to go on there."""
        raise NotImplementedError

    def listing(self) -> Iterator[Entry]:
        """Every object, and everything beside them that is none, with the reason: for a source, whose files count."""
        return self.entries()

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below a folder."""
        return [entry.path for entry in self.entries(prefix)]

    def size(self, name: str) -> int | None:
        """The object's size in bytes, or None where there is none."""
        raise NotImplementedError

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A local file with the object's bytes, for as long as the context is open."""
        raise NotImplementedError

    def part(self, name: str, offset: int, size_bytes: int, target: Path) -> None:
        """Write `size_bytes` of the object from `offset` on to a local file, fewer where it ends before; only these
        bytes travel. FileNotFoundError where there is no such object."""
        raise NotImplementedError

    def below(self, name: str) -> Bucket:
        """The same store, at a folder."""
        raise NotImplementedError

    def url(self, name: str) -> str:
        """Full address of a name, as Lance and people read it."""
        return f"{self.uri}/{checked(name)}" if name else self.uri

    def check_is_here(self) -> None:
        """TransientError where this machine has no such place, because it is a folder of another one."""

    def storage_options(self) -> dict[str, str] | None:
        """What Lance needs to open addresses here, without credentials."""
        return None


class UnsafeNameError(UserError):
    """An object name that would leave its folder."""


def checked(name: str) -> str:
    """The name, if it stays below the prefix."""
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", "..") for part in parts):
        raise UnsafeNameError(f"the object name {name!r} would leave its folder: use relative names without '..'")
    return name


def open_bucket(uri: str, endpoint: str | None = None, region: str | None = None) -> Bucket:
    """The bucket at a folder's path or at `s3://bucket/prefix`."""
    from infra.folder_bucket import LocalBucket
    from infra.s3_bucket import S3Bucket

    if uri.startswith("s3://"):
        return S3Bucket(uri, endpoint, region)
    if "://" in uri:
        raise UserError(f"{uri!r} is no place that plait reads: give a folder, or s3://bucket/prefix")
    return LocalBucket(uri)
