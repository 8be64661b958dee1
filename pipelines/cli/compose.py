"""Hydra, and the only file that imports it: overrides from the command line to a Config and a Graph."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import conf
from infra.bucket import Bucket, open_bucket
from infra.folder_bucket import LocalBucket
from infra.types import UserError
from pipelines.config import Config, config_of
from pipelines.graph import Graph

CONF = Path(conf.__file__).parent
DEFAULT_PIPELINE = "demo"
GROUPS = ("pipeline", "recipe", "scale", "tokenizer", "storage", "cluster", "tracking", "evaluation")


@dataclass(frozen=True)
class Setup:
    """What a verb works on."""

    config: Config
    graph: Graph
    root: Bucket
    home: Path
    """Local folder for what must be local: mlflow.db."""

    @property
    def sample(self) -> Bucket:
        """Where the sample corpus lies, in the root, so that every node finds it: `raw/`, and `truth.json` at last."""
        return self.root.below("sample")


def compose(overrides: Sequence[str]) -> Config:
    """The configuration under these overrides, or one sentence."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    own, rest = _own_pipeline(overrides)
    for text in rest:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"{text!r} is no override: write name=value, as in clips.threshold=30 or source=DIR")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            found = hydra_compose("config", overrides=_for_hydra(rest, own))
        plain = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error, rest)) from None
    assert isinstance(plain, dict)
    chosen = [t.partition("=")[2] for t in rest if t.startswith("pipeline=")]
    return config_of({str(k): v for k, v in plain.items()} | {"pipeline": own or [DEFAULT_PIPELINE, *chosen][-1]})


def setup(overrides: Sequence[str]) -> Setup:
    """Configuration, graph and root for a verb."""
    import os

    config = compose(overrides)
    if config.cluster.workers is None:
        config = replace(config, cluster=replace(config.cluster, workers=os.cpu_count() or 2))
    module, _, function = config.pipeline.partition(":")
    try:
        build = getattr(importlib.import_module(module if function else f"pipelines.{module}"), function or "graph")
    except (ImportError, AttributeError) as error:
        raise UserError(f"pipeline={config.pipeline} cannot be loaded ({error}): give one of {_choices('pipeline')} or module:function") from error  # fmt: skip  # noqa: E501
    graph = build(config)
    named = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in overrides}
    unknown = sorted((set(config.settings) & named) - set(graph.names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], graph.names, 1)
        hint = f"did you mean {near[0]}?" if near else f"its stages are {', '.join(graph.names)}"
        raise UserError(f"{unknown[0]} is no stage of {graph.name}: {hint}")
    places = (text.lstrip("+~").partition("=")[0] for text in overrides)
    for name in sorted({place.split(".")[2] for place in places if place.startswith("cluster.stages.")}):
        graph.node(name)
    if "storage=s3" in overrides and not config.storage.root:
        raise UserError("storage=s3 needs a place: add storage.root=s3://bucket/prefix")
    root = open_bucket(config.storage.root or config.root, config.storage.endpoint, config.storage.region)
    if isinstance(root, LocalBucket) and root.folder.exists() and not root.folder.is_dir():
        raise UserError(f"root={config.root} is a file: give a folder")
    home = root.folder if isinstance(root, LocalBucket) else Path(config.root).expanduser().resolve()
    return Setup(config, graph, root, home)


def source_of(made: Setup) -> Bucket:
    """The source that the configuration names; for the sample corpus its folder, whether it exists or not."""
    config = made.config
    if config.source is None:
        return made.sample.below("raw")
    source = open_bucket(
        config.source, config.storage.source_endpoint or config.storage.endpoint, config.storage.region
    )
    if source.uri == made.root.uri:
        raise UserError(f"source and root are both {source.uri}: plait would read what it writes, give another root")
    if isinstance(source, LocalBucket) and not source.folder.is_dir():
        raise UserError(f"source={config.source} is no folder: give a folder that exists, or s3://bucket/prefix")
    return source


def _own_pipeline(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """`pipeline=my.module:graph` is no file of conf/: it is taken out before Hydra sees it."""
    own = [t.partition("=")[2] for t in overrides if t.startswith("pipeline=") and ":" in t]
    return (own[-1] if own else None), [t for t in overrides if not (t.startswith("pipeline=") and ":" in t)]


def _for_hydra(overrides: Sequence[str], own: str | None) -> list[str]:
    """Quoted overrides; a pipeline of one's own starts from conf/pipeline/bare.yaml and may bring new names."""
    quoted = [_quoted(text) for text in overrides]
    if own is None:
        return quoted
    plain = [t for t in quoted if t[0] in "+~" or t.partition("=")[0] in GROUPS]
    return ["pipeline=bare", *plain, *(f"++{t}" for t in quoted if t not in plain)]


def _quoted(text: str) -> str:
    """Hydra's grammar takes SQL, URLs and paths only in quotes; whoever quotes already is left alone.

    A select clause may be new: `select.mine="short_side > 500"` needs no `+`, nor do the placement of a stage
    (`cluster.stages.captions.workers=4`) and names in a value in braces.
    """
    name, _, value = text.partition("=")
    names_something = name.startswith(("select.", "cluster.stages.")) or (value[:1] == "{" and name[:1] not in "+~")
    name = f"++{name}" if names_something else name
    plain = re.fullmatch(r"[\w.+-]*", value) or value[:1] in "'\"[{" or value == ""
    if plain:
        return f"{name}={value}" if "=" in text else text
    if value[:1] in "'\"" and value[-1:] == value[:1] and len(value) > 1 and value[0] not in value[1:-1]:
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'"


def _choices(group: str) -> str:
    return ", ".join(sorted(p.stem for p in (CONF / group).glob("*.yaml")))


def _sentence(error: Exception, overrides: Sequence[str]) -> str:
    text = " ".join(str(error).split())
    for group in GROUPS:
        for override in overrides:
            name, _, value = override.partition("=")
            if name == group and not (CONF / group / f"{value}.yaml").exists():
                return f"{override} is no choice: {group} is one of {_choices(group)}"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        name = getattr(error, "full_key", None) or missing.group(1)
        return f"{name} is missing: write {name}=VALUE"
    missing = re.search(r"Could not override '([^']+)'", text)
    if missing:
        name = missing.group(1)
        hint = _near(name)
        return f"{name} is no setting: {hint}"
    missing = re.search(r"Key '([^']+)' is not in struct", text)
    if missing:
        return f"{missing.group(1)} is no setting: {_near(missing.group(1))}"
    return f"the overrides {' '.join(overrides)} cannot be read ({text[:160]}): write name=value"


def _near(name: str) -> str:
    import yaml

    known: dict[str, str] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        tree = yaml.safe_load(path.read_text()) or {}
        group = (
            "" if path.parent.name in ("conf", "pipeline", "recipe", "scale", "tokenizer") else path.parent.name + "."
        )
        for key, value in tree.items():
            inner = [f"{group}{key}.{k}" for k in value] if isinstance(value, dict) else []
            of = path.stem if path.parent.name == "pipeline" else ""
            known |= {place: of or known.get(place, "") for place in (f"{group}{key}", *inner)}
    if known.get(name):
        return f"it is one of another pipeline, add pipeline={known[name]}"
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"did you mean {near[0]}?" if near else "settings have a stage's name, as in clips.threshold=30"
