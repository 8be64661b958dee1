"""The root as the explorer reads it: what stands, looked at again now and then; pages, columns and blobs of snapshots.

Nothing here loads a dataset. A page is a few rows of a few columns; a column that is sorted or filtered by is held
whole, as numbers, for as long as its snapshot is looked at; a blob is opened, and only the bytes asked for are read.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.bucket import Bucket
from infra.digests import key_words
from infra.ledger import snapshot_of
from infra.store import Store
from infra.types import Snapshot, UserError
from pipelines import rest
from pipelines.standing import Standing

LOOK_S = 2.0
"""Between two looks at the ledger; a ledger that takes long to read is read less often."""
PATIENCE = 10.0
"""Between two looks at least so many times what one took."""
CACHE_BYTES = 512 << 20
OPEN_BYTES = 1 << 20
"""What an opened dataset counts for among them: the versions of long ago are closed."""
MAX_PAGE = 200
NUMBERS = ("double", "float", "int64", "int32", "int16", "int8")


class Cache:
    """Values by name, the least used ones forgotten when they are more than so many bytes together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._held: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._making: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: Any, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """The value of this name, made where it is not held; who asks for it meanwhile waits for that one."""
        with self._lock:
            making = self._making.setdefault(name, threading.Lock())
        with making:
            with self._lock:
                if name in self._held:
                    self._held.move_to_end(name)
                    self._making.pop(name, None)
                    return self._held[name][0]
            try:
                value = make()
                self._keep(name, value, size(value))
            finally:
                with self._lock:
                    self._making.pop(name, None)
        return value

    def _keep(self, name: Any, value: Any, num_bytes: int) -> None:
        with self._lock:
            self._held[name] = (value, num_bytes)
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes and len(self._held) > 1:
                self.num_bytes -= self._held.popitem(last=False)[1][1]


class Fresh:
    """A value that is made again now and then: by one who asks, while the others are given the last one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._value: Any = None
        self._look_at = 0.0
        self._lock = threading.Lock()

    def get(self) -> Any:
        """The value, at most a few seconds old; older where making it takes long."""
        known = self._value is not None
        if (known and time.monotonic() < self._look_at) or not self._lock.acquire(blocking=not known):
            return self._value
        try:
            if time.monotonic() >= self._look_at:
                began = time.monotonic()
                self._value = self._make()
                now = time.monotonic()
                self._look_at = now + max(LOOK_S, PATIENCE * (now - began))
        finally:
            self._lock.release()
        return self._value


class Root:
    """One root. Every method may be called from several threads."""

    def __init__(self, bucket: Bucket, overrides: Sequence[str] = (), edges: Mapping[str, Sequence[str]] | None = None):
        self.bucket = bucket
        self.overrides = list(overrides)
        self.edges = dict(edges or {})
        """Inputs of each stage of the configured pipeline, for what was never made."""
        self.store = Store(bucket)
        self.cache = Cache(CACHE_BYTES)
        self._fresh: dict[str, Fresh] = {}
        self._documents: dict[str, dict[str, Any] | None] = {}

    # --- the ledger ----------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """What stands; at most a few seconds old."""
        return self.fresh("standing", lambda: Standing(self.bucket))

    def fresh(self, name: str, make: Callable[[], Any]) -> Any:
        """What is looked at again now and then, however many ask."""
        return self._fresh.setdefault(name, Fresh(make)).get()

    def document(self, dataset: str, key: str, name: str) -> dict[str, Any] | None:
        """A write-once document of a materialisation's folder: read once."""
        path = f"{dataset}/{key}/{name}"
        if self._documents.get(path) is None:
            self._documents[path] = self.standing().ledger.folder(dataset, key).get(name)
        return self._documents[path]

    def settings(self, done: Mapping[str, Any]) -> dict[str, Any]:
        """`tree` and `notes` of a materialisation's key."""
        return self.document(done["dataset"], done["key"], "key.json") or {"tree": {}, "notes": {}}

    def rest(self, done: Mapping[str, Any]) -> pa.Table:
        """Every unit that gave no row: what `pipelines.rest` says, without the texts of errors."""
        if not done.get("rest"):
            return rest.EMPTY.drop_columns(["error"])

        def read() -> pa.Table:
            return self.standing().rest(done).drop_columns(["error"])

        return self.cache.get(("rest", done["dataset"], done["key"], done["rest"]), read, lambda t: t.nbytes)

    # --- datasets ------------------------------------------------------------------------------------------

    def open(self, snapshot: Snapshot) -> Any:
        """The Lance dataset at exactly this version, opened once."""
        return self.cache.get(("open", snapshot), lambda: self.store.open(snapshot), lambda _: OPEN_BYTES)

    def columns(self, snapshot: Snapshot) -> dict[str, str]:
        """Name to type of the columns that are no blobs."""
        return {f.name: str(f.type) for f in self.open(snapshot).schema if not isinstance(f.type, pa.ExtensionType)}

    def blobs(self, snapshot: Snapshot) -> list[str]:
        """Names of the blob columns."""
        return [f.name for f in self.open(snapshot).schema if isinstance(f.type, pa.ExtensionType)]

    def page(
        self,
        snapshot: Snapshot,
        columns: Sequence[str],
        where: str | None = None,
        limit: int = MAX_PAGE,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """A few rows in the order of the snapshot, of the columns that it has."""
        known = self.columns(snapshot)
        wanted = [c for c in columns if c in known]
        return self.open(snapshot).to_table(columns=wanted, filter=where, limit=limit, offset=offset).to_pylist()

    def at(self, snapshot: Snapshot, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at these positions."""
        known = self.columns(snapshot)
        wanted = [c for c in columns if c in known]
        return self.open(snapshot).take(list(positions), columns=wanted).to_pylist() if len(positions) else []

    def count(self, snapshot: Snapshot, where: str | None = None) -> int:
        """How many rows pass."""
        return snapshot.rows if where is None else self.open(snapshot).count_rows(where)

    def keys(self, snapshot: Snapshot) -> pa.Array:
        """All keys, in the order of the snapshot: 16 bytes a row."""

        def read() -> pa.Array:
            return self.open(snapshot).to_table(columns=["key"])["key"].combine_chunks()

        return self.cache.get((snapshot, "key"), read, lambda a: a.nbytes)

    def numbers(self, snapshot: Snapshot, column: str) -> np.ndarray:
        """One column of numbers, nulls as nan: 8 bytes a row."""
        if self.columns(snapshot).get(column) not in NUMBERS:
            raise UserError(f"{column!r} is no number of {snapshot.name}: {', '.join(self.number_names(snapshot))}")

        def read() -> np.ndarray:
            values = self.open(snapshot).to_table(columns=[column])[column].cast(pa.float64())
            return values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)

        return self.cache.get((snapshot, "numbers", column), read, lambda a: a.nbytes)

    def number_names(self, snapshot: Snapshot) -> list[str]:
        """Columns that `numbers` gives."""
        return [name for name, kind in self.columns(snapshot).items() if kind in NUMBERS]

    def place(self, snapshot: Snapshot, key: bytes) -> int:
        """Where a row lies in the order of its snapshot."""
        words, wanted = key_words(self.keys(snapshot)), np.frombuffer(key, np.uint64)
        found = np.flatnonzero((words[:, 0] == wanted[0]) & (words[:, 1] == wanted[1]))
        if not len(found):
            raise UserError(f"{key.hex()} is the key of no row of {snapshot.name}@{snapshot.version}")
        return int(found[0])

    def blob(self, snapshot: Snapshot, column: str, key: bytes) -> Any:
        """An open file of one row's blob: nothing is read yet. None where the row has none."""
        if column not in self.blobs(snapshot):
            has = ", ".join(self.blobs(snapshot)) or "none"
            raise UserError(f"{column!r} is no blob of {snapshot.name}: it has {has}")
        return self.open(snapshot).take_blobs(column, indices=[self.place(snapshot, key)])[0]

    # --- names ---------------------------------------------------------------------------------------------

    def snapshot(self, dataset: str) -> Snapshot | None:
        """The standing snapshot, or None."""
        done = self.standing().dones.get(dataset)
        return snapshot_of(done) if done else None


def key_of(text: str) -> bytes:
    """The 16 bytes of a key in hex digits."""
    digits = text.lower()
    if len(digits) != 32 or any(c not in "0123456789abcdef" for c in digits):
        raise UserError(f"{text[:40]!r} is no key: keys are 32 hex digits")
    return bytes.fromhex(digits)


def literal(text: str) -> str:
    """A text as an SQL literal: what a person typed is never part of the statement."""
    return "'" + text.replace("'", "''") + "'"


def key_literals(keys: Sequence[bytes]) -> str:
    """Keys as SQL literals for `in (...)`."""
    return ", ".join(f"X'{key.hex()}'" for key in keys)


def has_parent(keys: Sequence[bytes]) -> str:
    """SQL: rows that have one of these among their parents."""
    listed = ", ".join(f"arrow_cast(X'{key.hex()}', 'FixedSizeBinary(16)')" for key in keys)
    return f"array_has_any(parents, make_array({listed}))"
