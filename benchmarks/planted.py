"""Roots written at once, without a run: datasets with the columns of their stages, and the ledger beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.bucket import Bucket
from infra.commits import publish_full
from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger, dumps
from infra.store import KEY, LABEL, PARENTS, Store, blob_names
from infra.types import now_utc
from pipelines import rest
from stages.base import Stage

RUN_ID = "20260101T000000-000000001"


def keys_of(name: str, num_rows: int) -> pa.Array:
    """Keys as good as real ones: uniform, the same each time."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
    return fixed(np.random.default_rng(seed).bytes(16 * num_rows))


def fixed(data: bytes) -> pa.Array:
    """Bytes as an array of keys."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(data) // 16, [None, pa.py_buffer(data)])


def only_parents(keys: pa.Array) -> pa.Array:
    """Each row has one parent."""
    offsets = pa.array(np.arange(len(keys) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, keys, type=PARENTS.type)


def key_of(dataset: str, inputs: Iterable[str]) -> str:
    """The key of the materialisation that `Planted.put` makes."""
    return hashlib.blake2b(f"{dataset} {sorted(inputs)}".encode(), digest_size=16).hexdigest()


class Planted:
    """A root that is written dataset by dataset, inputs first."""

    def __init__(self, place: Path | Bucket) -> None:
        self.bucket = place if isinstance(place, Bucket) else LocalBucket(place)
        self.store, self.ledger = Store(self.bucket), Ledger(self.bucket)
        self.dones: dict[str, dict[str, Any]] = {}

    def put(
        self,
        stage: type[Stage],
        columns: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        left: Sequence[Mapping[str, Any]] | pa.Table = (),
        select: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        unit: str = "key",
    ) -> dict[str, Any]:
        """Publish a dataset: columns that are not given are null; `inputs` are names with their roles."""
        name = stage.writes
        key = key_of(name, inputs or ())
        table = self._table(stage, columns)
        since = self.store.head(name)
        staged = self.store.stage_table(name, table, stage.schema)
        version = publish_full(self.store, name, stage.schema, staged.fragments, f"{key}.1", since)
        snapshot = self.store.snapshot(name, version)
        gone = left if isinstance(left, pa.Table) else rest.from_rows(left)
        folder = self.ledger.folder(name, key)
        tree = {"recipe": {"stage": stage.__name__, "revision": 1, "settings": dict(settings or {}), "sides": {}}}
        tree["recipe"]["schema"] = [[field.name, str(field.type)] for field in stage.schema]
        tree["inputs"] = {n: self.dones[n]["snapshot"]["digest"] for n in inputs or {}}
        folder.put("key.json", {"tree": tree, "notes": {"code": "c0de" * 8, "select": dict(select or {})}})
        folder.put("claim.1", {"host": "planted", "pid": 1, "started": 0.0, "run_id": RUN_ID, "at": now_utc()})
        folder.put("claim.2", {"released": True, "run_id": RUN_ID, "at": now_utc()})
        folder.put_bytes("rest.1.planted", rest.to_bytes(gone))
        given = {
            n: {"snapshot": self.dones[n]["snapshot"], "role": role, "unit": unit} for n, role in (inputs or {}).items()
        }
        counts = rest.counts(gone)
        done = {
            "dataset": name, "key": key, "number": 1, "plan": 1, "why": "made", "snapshot": snapshot.to_json(),
            "inputs": given, "rest": "rest.1.planted", "reasons": rest.by_reason(gone), "recipe": key, "metrics": {},
            "rows_in": snapshot.rows + sum(counts.values()), "rows_out": snapshot.rows, **counts, "kept": 0,
            "computed": snapshot.rows, "run_id": RUN_ID, "pipeline": "demo", "state": "done", "seconds": 1.5,
            "at": now_utc(),
        }  # fmt: skip
        folder.put("done.1", done)
        self.dones[name] = done
        return done

    def _table(self, stage: type[Stage], columns: Mapping[str, Any]) -> pa.Table:
        num_rows = len(next(iter(columns.values())))
        own = stage.schema
        empty = pa.ListArray.from_arrays(pa.array([0] * (num_rows + 1), pa.int32()), fixed(b""), type=PARENTS.type)
        made = {"key": keys_of(stage.writes, num_rows), "parents": empty, "label": pa.array([""] * num_rows)} | dict(
            columns
        )
        arrays = []
        for field in (KEY, PARENTS, LABEL, *own):
            value = made.get(field.name)
            arrays.append(pa.nulls(num_rows, field.type) if value is None else value if isinstance(value, pa.Array) else pa.array(value, field.type))  # fmt: skip  # noqa: E501
        plain = pa.table(arrays, names=[f.name for f in (KEY, PARENTS, LABEL, *own)])
        return Store.with_blobs(plain, own) if blob_names(own) else plain.cast(pa.schema([KEY, PARENTS, LABEL, *own]))

    def end_run(self, command: Sequence[str], run_id: str = RUN_ID, **more: Any) -> None:
        """Put the record of the run that made all of it, and what it said."""
        names = ("key", "rows_in", "rows_out", "empty", "filtered", "quarantined", "kept", "computed", "seconds")
        stages = [{"name": n, "state": "done"} | {k: d[k] for k in names} for n, d in self.dones.items()]
        started = {"host": "planted", "pid": 1, "started": 0.0, "at": now_utc(), "command": list(command)}
        self.bucket.put_if_absent(f"ledger/runs/{run_id}/started", dumps(started))
        line = {"at": now_utc(), "stage": "clips", "worker": "driver", "level": "info", "text": "the run begins"}
        self.bucket.put_if_absent(f"ledger/runs/{run_id}/log.1", json.dumps(line).encode() + b"\n")
        record = {"run_id": run_id, "ok": True, "at": now_utc(), "command": list(command), "pipeline": "demo"}
        self.ledger.record_run(run_id, record | {"stages": stages} | more)
