"""A Job on one machine with tables in memory; keeps what a stage told it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.checkpoints import CheckpointFolder
from infra.cluster import connect
from infra.folder_bucket import LocalBucket
from stages.base import Training


@dataclass(frozen=True)
class FakeReader:
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return self.table.select(list(columns)).take([int(row) for row in rows])

    def scan(self, columns: Sequence[str], batch_rows: int = 1024) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(list(columns)).to_batches(max_chunksize=batch_rows)


@dataclass
class FakeJob:
    scratch: Path
    tables: dict[str, pa.Table] = field(default_factory=dict)
    sides: dict[str, Path] = field(default_factory=dict)
    num_workers: int = 1
    training: Training = field(default_factory=Training)
    profile: bool = False
    run_id: str = "fake"
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    summaries: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rejected: dict[bytes, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    progressed: list[tuple[int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoints = checkpoints_of(self.scratch)
        if "text_tokenizer" not in self.sides:  # texts are bytes, unless a test brings another tokenizer
            folder = self.scratch / "text_tokenizer"
            folder.mkdir(exist_ok=True)
            (folder / "bytes").touch()
            self.sides = {**self.sides, "text_tokenizer": folder}

    def reader(self, dataset: str) -> FakeReader:
        return FakeReader(self.tables[dataset])

    def checkpoint(self, dataset: str) -> Path:
        return self.sides[dataset]

    def ray(self) -> Any:
        return connect(None, 2)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, dict(metrics)))

    def summary(self, metrics: Mapping[str, float]) -> None:
        self.summaries.update(metrics)

    def progress(self, done: int, total: int, what: str) -> None:
        self.progressed.append((done, total, what))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def stopping(self) -> bool:
        return False

    def picture(self, name: str, png: bytes) -> None:
        self.pictures[name] = png

    def reject(self, key: bytes, label: str, reason: str) -> None:
        self.rejected[key] = reason


@dataclass(frozen=True)
class FakeKit:
    sides: dict[str, Path]

    def checkpoint(self, dataset: str) -> Path:
        return self.sides[dataset]


def checkpoints_of(folder: Path) -> CheckpointFolder:
    folder.mkdir(parents=True, exist_ok=True)
    return CheckpointFolder(LocalBucket(folder), "checkpoints")


def key_of(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, dataset: str) -> pa.Table:
    """Rows of a stage as the engine would store them: with key, parents and label."""
    made = [
        {"key": row.get("key", key_of(dataset, i)), "parents": [], "label": f"{dataset} {i}"} | dict(row)
        for i, row in enumerate(rows)
    ]
    engine = [("key", pa.binary(16)), ("parents", pa.list_(pa.binary(16))), ("label", pa.string())]
    return pa.Table.from_pylist(made, pa.schema([*engine, *schema]))
