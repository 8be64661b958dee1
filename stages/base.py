"""What a stage is: settings, edges, a schema and one method. Nothing here knows who runs it.

A stage is a frozen dataclass. Its fields are its settings and all of them are in the key; what does not
change results (workers, batch sizes, devices) is never a field. Row stages have `process`, job stages `run`.

Keys, made by the engine (ARCHITECTURE, "Row"):
    pure stage         key = H(dataset, recipe, parents, ordinal)
    `content` is set   key = H(dataset, parents, those columns, ordinal among equals)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, Protocol

import pyarrow as pa

from infra.types import BadRow, Checkpoint, Filtered, Outcome, Row, TransientError, UserError

__all__ = [
    "AS_BEFORE", "BadRow", "Checkpoint", "Checkpoints", "Edge", "Filtered", "Job", "JobStage", "Kit", "Outcome",
    "RawFile", "Reader", "Row", "RowStage", "Stage", "Training", "TransientError", "above_zero", "blob",
    "held_out", "since",
]  # fmt: skip

AS_BEFORE = "as_before"

_HELD_OUT_ONE_IN = 10


def held_out(digest_hex: str) -> bool:
    """Whether raw content with this SHA-256 is kept from training: one in ten, by the digest alone.

    A function of the raw file, so that no clip of a training video is ever evaluated on.
    """
    return int(digest_hex[:16], 16) % _HELD_OUT_ONE_IN == 0


def blob(name: str) -> pa.Field:
    """A column of large binary values (media), stored as Lance blobs: scans do not touch the payload."""
    return pa.field(name, pa.large_binary(), metadata={b"plait.blob": b"v2"})


def above_zero(stage: Stage, *names: str) -> None:
    """Refuse settings that are not above 0; for `__post_init__`."""
    for name in names:
        if not getattr(stage, name) > 0:
            raise UserError(f"{stage.writes}.{name} is {getattr(stage, name)}: give a number above 0")


def since(as_before: Any, **kwargs: Any) -> Any:
    """Declare a setting added after the first release: left out of the key while it equals `as_before`."""
    return field(metadata={AS_BEFORE: as_before}, **({"default": as_before} | kwargs))


@dataclass(frozen=True)
class Edge:
    """One input of a stage.

    role "rows": each of its rows is a unit of work (several such edges: their union).
    role "side": the whole snapshot is a setting (a tokenizer): its digest is in the recipe.
    """

    dataset: str
    columns: tuple[str, ...] = ()
    role: Literal["rows", "side"] = "rows"
    unit: str = "key"
    """Column that names a unit; not `key` where several rows stand for one content (`files`)."""
    where: str | None = None
    """Fixed SQL over the dataset: rows outside are not units of this stage."""
    held: bool = False
    """Its part of the key stays that of the last `done` until `--refresh`."""
    parent: tuple[str, tuple[str, ...]] | None = None
    """A dataset and columns of it: of each row's first parent, which is a row there, they come along in
    `row["parent"]`. The key is unchanged by it, since a row's key names its parents. A row whose parent is gone goes to
    quarantine."""


class RawFile(Protocol):
    """A raw file of the source, found by content: where it lies today is not the stage's business."""

    label: str

    def local(self) -> AbstractContextManager[Path]:
        """A readable local path; its bytes have been checked against the row's digest."""
        ...

    def open(self) -> BinaryIO:
        """A seekable binary file of the checked bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Base of all stages. Subclasses are frozen dataclasses; their docstring is their manual."""

    writes: ClassVar[str]
    """The dataset it writes, which is its name everywhere."""
    revision: ClassVar[int] = 1
    """Bumped when the meaning of the results changes."""
    inputs: ClassVar[tuple[Edge, ...]] = ()
    schema: ClassVar[pa.Schema]
    """Columns of a row of its output, beside key, parents and label."""
    content: ClassVar[tuple[str, ...] | None] = None
    """Columns that name the row, for stages that are not pure or that want early cut-off."""

    def settings(self) -> dict[str, Any]:
        """What enters the key: every field, but those that stand at their "as before" value."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata.get(AS_BEFORE, MISSING) != getattr(self, f.name)
        }


class Kit(Protocol):
    """What a row stage may ask for when a worker sets it up."""

    def checkpoint(self, dataset: str) -> Path:
        """Local folder with the verified files of the checkpoint on the side edge `dataset`."""
        ...

    def rows(self, dataset: str, columns: Sequence[str]) -> pa.Table:
        """All rows of the side edge `dataset`."""
        ...

    def reader(self, snapshot: Mapping[str, Any]) -> Reader:
        """Random access to a snapshot that a row names, as `Snapshot.to_json` has it."""
        ...

    def fetch(self, manifest: str, sha256: str, names: Collection[str] | None = None) -> AbstractContextManager[Path]:
        """A local folder with the verified files (of these names) of a checkpoint that a row names; DamagedError."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowStage(Stage):
    """A stage that makes rows out of rows, any batch anywhere in any order.

    `setup` runs once per worker and returns what `process` needs (models, sessions). `process` gets dicts
    with the edge's columns plus `key`, `label`, `dataset` (which edge), and `raw` (a RawFile) where `reads_raw`;
    blob columns arrive as bytes. It returns one Outcome per row, in order. An exception puts one row in
    quarantine; TransientError leaves the shard undone. Results never depend on how rows were batched.
    """

    reads_raw: ClassVar[bool] = False

    def setup(self, kit: Kit) -> Any:
        """Once per worker; what it returns is handed to every `process`."""
        return None

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """One Outcome per row, in order."""
        raise NotImplementedError


class Reader(Protocol):
    """Random access to a pinned snapshot; picklable, so training workers can open it themselves."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows at these positions (positions are stable: the version is pinned)."""
        ...

    def scan(self, columns: Sequence[str], batch_rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """All rows in order of position, batch by batch; blob columns as bytes."""
        ...


class Checkpoints(Protocol):
    """The checkpoints of one materialisation; picklable. The manifest is written last and decides."""

    def latest(self) -> Checkpoint | None:
        """The highest step whose manifest exists (files are verified by `fetch`)."""
        ...

    def all(self) -> list[Checkpoint]:
        """Every published checkpoint, lowest step first."""
        ...

    def newest_first(self) -> Iterator[Checkpoint]:
        """As `all`, highest step first, each read when it is asked for."""
        ...

    def save(self, step: int, folder: Path, facts: Mapping[str, Any]) -> Checkpoint:
        """Upload every file under `folder`, then put the manifest if absent; a lost race adopts the winner."""
        ...

    def target(self, step: int) -> str:
        """Where one writer, perhaps of many ranks, puts its files: the first half of `save`."""
        ...

    def upload(self, target: str, folder: Path) -> dict[str, Any]:
        """Upload every file under `folder`; what the manifest will say of them, by name."""
        ...

    def publish(self, step: int, target: str, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Checkpoint:
        """Put the manifest of the files of all ranks if absent: the second half of `save`."""
        ...

    def files(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the manifest says of each file, by name."""
        ...

    def fetch(self, checkpoint: Checkpoint, names: Collection[str] | None = None) -> AbstractContextManager[Path]:
        """A local folder with the files (of these names), each checked against the manifest's SHA-256; DamagedError."""
        ...

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Leave a damaged checkpoint out from now on."""
        ...

    def drop(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the ranks of a training share its work: placement, so results change by no more than the order of sums."""

    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards the optimizer, 2 the gradients too, 3 the weights too. In bf16 at least 2."""
    packs_per_pass: int | None = None
    """Packs a rank computes at once; gradients of further passes are summed. Unset: all of a step at once."""
    sequence_ranks: int = 1
    """Ranks that share every pack, for long ones (Ulysses, arXiv 2309.14509); it divides the heads."""
    recompute: bool = False
    """Compute the inside of each block again in the backward pass: less memory, a third more time."""
    ahead: int = 8
    """Steps whose packs are read in advance: the time they take must outlast the store's slowest answer."""
    deterministic: bool = False
    """Only kernels that give the same bits every time (slower on GPUs)."""

    def __post_init__(self) -> None:
        for name in ("packs_per_pass", "sequence_ranks", "ahead"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"training.{name} is {value}: give 1 or more")


class Job(Protocol):
    """What a job stage is handed: its inputs, pinned, and a place to put what it makes."""

    scratch: Path
    num_workers: int
    """Placement: never changes the result."""
    training: Training
    """Placement too."""
    profile: bool
    """Whether a trace of a few steps of training is wanted."""

    @property
    def run_id(self) -> str:
        """The run that it is part of."""
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this materialisation."""
        ...

    def reader(self, dataset: str) -> Reader:
        """The rows of an edge that pass its gate."""
        ...

    def checkpoint(self, dataset: str) -> Path:
        """Local folder with the verified files of the last checkpoint of a side edge."""
        ...

    def ray(self) -> Any:
        """The `ray` module, connected to this run's cluster: Ray is started, or joined, when it is first asked for."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step, for MLflow and the progress line."""
        ...

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Final metrics of the materialisation: kept in the ledger, shown by `status`."""
        ...

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the progress bar."""
        ...

    def note(self, sentence: str) -> None:
        """Something that people should know and that ends nothing: for the run's log and the screen."""
        ...

    def stopping(self) -> bool:
        """Whether the run was asked to stop: end soon, what is saved is kept. `log` and `progress` raise by themselves;
        a stage that waits for others (training workers) asks here."""
        ...

    def picture(self, name: str, data: bytes) -> None:
        """A picture (png), or a file if the name has an ending, for people: an MLflow artifact of the stage."""
        ...

    def reject(self, key: bytes, label: str, reason: str) -> None:
        """An input row that gave nothing, on purpose, with the reason."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobStage(Stage):
    """A stage that sees its inputs whole; one unit of work, fresh or full.

    `run` yields output rows as dicts with the schema's columns, `parents` (list of 16-byte keys) and,
    if it likes, `label`. Checkpoints go through `job.checkpoints`; a rerun of the same key finds them there.
    """

    def run(self, job: Job) -> Iterator[Row]:
        """Yield the rows of the output."""
        raise NotImplementedError
