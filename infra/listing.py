"""The frozen listing of a source: which objects there are, before anybody opens them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute

from infra.bucket import Bucket, Entry, UnsafeNameError
from infra.types import BadRow, TransientError, UserError

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

RELIST = "run again, without --only or --from, so that it is listed anew"
SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("stamp", pa.string()),
        ("left_out", pa.string()),
    ]
)
ORDER = "order"
BATCH_NAMES = 1 << 16
"""Names that are held as Python objects at a time: as columns they take a fifth of the memory."""


def list_source(source: Bucket, limit: int | None = None, exclude: str = "") -> pa.Table:
    """One row per object or stray (`left_out`: why it is none), ordered by H(path): the first N are a fair sample.

    `key` names the object as it is now: H(path, size, stamp). A changed file is another unit of work.
    `exclude` is the root, which may lie inside the source: plait does not eat what it wrote.
    """
    inside = f"{exclude.removeprefix(source.uri).strip('/')}/" if exclude.startswith(source.uri + "/") else None
    entries = (e for e in source.listing() if inside is None or not e.path.startswith(inside))
    batches: list[pa.Table] = []
    has_file = False
    while some := list(islice(entries, BATCH_NAMES)):
        has_file = has_file or not all(e.left_out for e in some)
        batches.append(_first(_columns(some), limit))
    if not has_file:
        raise UserError(f"the source {source.uri} holds no file: give source=DIR or source=s3://bucket/prefix")
    return _first(pa.concat_tables(batches), limit).drop_columns(ORDER).combine_chunks()


def _columns(entries: list[Entry]) -> pa.Table:
    columns = [
        [_hash(e.path, str(e.size_bytes), e.stamp) for e in entries],
        [e.path for e in entries],
        [e.size_bytes for e in entries],
        [e.stamp for e in entries],
        [e.left_out for e in entries],
    ]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    return table.append_column(ORDER, pa.array([_hash(e.path) for e in entries], pa.binary()))


def _first(table: pa.Table, limit: int | None) -> pa.Table:
    """The first rows by H(path)."""
    at = pc.sort_indices(table[ORDER])
    return table.take(at if limit is None else at.slice(0, limit))


def _hash(*parts: str) -> bytes:
    data = b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in parts)
    return hashlib.blake2b(data, digest_size=16, person=b"plait").digest()


@dataclass(frozen=True)
class SourceFile:
    """A raw file of the source: the `RawFile` that stages see. Its bytes are checked against `digest` where known.

    A file inside a shard is a range of the shard's bytes.
    """

    bucket: Bucket
    path: str
    digest: str | None = None
    container: str | None = None
    """Path of the shard that holds it; None for an object of its own."""
    offset: int = 0
    """First byte in the shard."""
    size_bytes: int = 0
    """Length in the shard."""

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.path

    @contextmanager
    def local(self) -> Generator[Path]:
        """A local path with checked bytes; of a shard only this file's range is read."""
        with ExitStack() as opened:
            path = self._fetched(opened)
            if self.digest is not None and self._sha256(path) != self.digest:
                raise TransientError(f"{self.path} changed after it was listed: {RELIST}")
            yield path

    def open(self) -> BinaryIO:
        """The checked bytes, in memory."""
        import io

        with self.local() as path:
            return io.BytesIO(path.read_bytes())

    def _fetched(self, opened: ExitStack) -> Path:
        held = self.container or self.path
        try:
            if self.container is None:
                if self.bucket.size(held) is None:
                    raise FileNotFoundError(held)
                return opened.enter_context(self.bucket.local(held))
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="plait-member-"))
            member = Path(folder, f"member{Path(self.path).suffix}")
            self.bucket.part(held, self.offset, self.size_bytes, member)
            return member
        except UnsafeNameError as error:
            raise BadRow(str(error)) from error
        except FileNotFoundError as error:
            raise TransientError(f"{held} vanished after it was listed: {RELIST}") from error

    @staticmethod
    def _sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
