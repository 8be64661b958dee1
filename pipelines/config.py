"""The one border: plain nested values from Hydra become frozen dataclasses that refuse unknown keys."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from infra.types import UserError
from pipelines.graph import Node, Placement, Select
from stages.base import Stage

T = TypeVar("T")
S = TypeVar("S", bound=Stage)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Storage:
    """Where datasets and the ledger lie."""

    root: str | None = None
    """`s3://bucket/prefix`; unset: the local folder `root`."""
    endpoint: str | None = None
    """Address of an S3-compatible store; unset: AWS. Credentials come from the environment only."""
    region: str | None = None
    source_endpoint: str | None = None
    """As `endpoint`, for a source on another store."""


@dataclass(frozen=True)
class Cluster:
    """Where stages run; in no key."""

    address: str | None = None
    """HOST:PORT of a Ray cluster's head, or http://HEAD:8265, its job server; unset: RAY_ADDRESS, else a private Ray on
    this machine."""
    code: bool = True
    """Whether a submitted run brings this checkout's code along; else the cluster's own plait runs it."""
    shared: tuple[str, ...] = ()
    """Folders that every node of the cluster has at the same place as this machine: a submitted run may use them."""
    env: tuple[str, ...] = ()
    """Names of environment variables whose values a submitted run takes along from here."""
    workers: int | None = None
    """Actors per row stage; unset: one per CPU."""
    error_budget: float = 0.5
    """Share of a stage's units that may be quarantined (beyond the first 20) before the run stops."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Placement by stage, over these defaults."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"cluster.workers={self.workers} is not allowed: give 1 or more, or null for one per CPU")


@dataclass(frozen=True)
class Tracking:
    """MLflow."""

    enabled: bool = True
    uri: str | None = None
    """Tracking server; unset: `<root>/mlflow.db` beside the data."""
    experiment: str = "plait"


@dataclass(frozen=True)
class Sample:
    """The sample corpus, written where no source is given."""

    seed: int = 7
    num_videos: int = 24
    num_stills: int = 1500
    num_texts: int = 60

    def __post_init__(self) -> None:
        if min(self.num_videos, self.num_stills, self.num_texts) < 0:
            raise UserError("the sample's counts are below 0: give 0 or more of each")


@dataclass(frozen=True)
class Evaluation:
    """What `plait evaluate` asks of checkpoints, and when."""

    every: str = "10m"
    """Between looks for new checkpoints with --watch: seconds, minutes, hours or days, as 90s or 6h."""
    budget: int | None = None
    """Most new checkpoints that one look takes on, the newest first; unset: all."""
    suites: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `questions`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The suites' own settings."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Files of evidence that another tool found, by suite."""
    gates: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `scores`."""

    def __post_init__(self) -> None:
        self.every_s()
        if self.budget is not None and self.budget < 1:
            raise UserError(f"evaluation.budget is {self.budget}: give 1 or more, or null for all")

    def every_s(self) -> float:
        """Seconds between two looks."""
        number, unit = self.every[:-1], self.every[-1:]
        if not number.isdigit() or unit not in _SECONDS or not int(number):
            raise UserError(f"evaluation.every is {self.every!r}: write a number with s, m, h or d, as in 10m")
        return int(number) * _SECONDS[unit]


@dataclass(frozen=True)
class Config:
    """All that a pipeline function sees."""

    pipeline: str
    root: str
    source: str | None
    storage: Storage
    cluster: Cluster
    tracking: Tracking
    sample: Sample
    evaluation: Evaluation
    select: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    """Stage settings by the dataset's name."""

    def node(self, stage: type[S], *, selected: bool = False) -> Node:
        """A stage with its settings, its placement and, if `selected`, the pipeline's select."""
        name = stage.writes
        built = strict(stage, self.settings.get(name, {}), name)
        return Node(built, Select("scores", "clips", self.select) if selected else None, self.placement(name))

    def placement(self, name: str) -> Placement:
        """Placement of a stage: the cluster's defaults, then its own."""
        values: dict[str, Any] = {"error_budget": self.cluster.error_budget}
        if self.cluster.workers:
            values["workers"] = self.cluster.workers
        return strict(Placement, values | dict(self.cluster.stages.get(name, {})), f"cluster.stages.{name}")


def strict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from plain values; one sentence for an unknown key, a missing one, or a wrong type."""
    _refuse_unknown(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        # of a choice of dataclasses, pydantic names the class as well
        name = ".".join([where, *(str(p) for p in first["loc"] if not str(p)[:1].isupper())])
        if first["type"] == "missing":
            raise UserError(
                f"{name} is missing: write {name}=VALUE, or choose a recipe and a scale that set it"
            ) from None
        raise UserError(f"{name}={first['input']!r} is not allowed ({first['msg']})") from None


def _refuse_unknown(cls: Any, values: Mapping[str, Any], where: str) -> None:
    hints = typing.get_type_hints(cls)
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    for name, value in values.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"its settings are: {', '.join(allowed) or 'none'}"
            raise UserError(f"{where}.{name} is no setting: {hint}")
        if not isinstance(value, Mapping):
            continue
        named = typing.get_origin(hints[name]) is Mapping  # dataclasses by name, not one dataclass
        for key, one in value.items() if named else [("", value)]:
            place = f"{where}.{name}" + (f".{key}" if key else "")
            hint = typing.get_args(hints[name])[1] if named else hints[name]
            if isinstance(one, Mapping) and (part := _part(hint, one, place)) is not None:
                _refuse_unknown(part, one, place)


def _part(hint: Any, value: Mapping[str, Any], where: str) -> Any:
    """The dataclass that a nested value stands for; of several, the one whose `kind` it names. None: no dataclass."""
    choices = [c for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)]
    if len(choices) < 2:
        return choices[0] if choices else None
    kinds = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in choices}
    if value.get("kind") not in kinds:
        raise UserError(f"{where}.kind={value.get('kind')} is not allowed: give one of {', '.join(kinds)}")
    return kinds[value["kind"]]


RESERVED = (
    "pipeline",
    "root",
    "source",
    "storage",
    "cluster",
    "tracking",
    "sample",
    "evaluation",
    "select",
    "recipe",
    "scale",
    "trunk",
)


def config_of(plain: Mapping[str, Any]) -> Config:
    """The whole configuration from Hydra's plain values."""
    settings = {k: v for k, v in plain.items() if k not in RESERVED}
    for name, values in settings.items():
        if not isinstance(values, Mapping):
            raise UserError(f"{name}={values!r} is no group of settings: settings have a stage's name, as in clips.threshold=30")  # fmt: skip  # noqa: E501
    parts: dict[str, type] = {
        "storage": Storage,
        "cluster": Cluster,
        "tracking": Tracking,
        "sample": Sample,
        "evaluation": Evaluation,
    }
    values = {k: plain[k] for k in ("pipeline", "root", "source", "select", *parts)}
    for name, part in parts.items():
        _refuse_unknown(part, values[name], name)
    return strict(Config, {**values, "settings": settings}, "config")
