"""The pipeline of `plait evaluate`: checkpoints and questions to scores and gates.

Its first dataset is what lies in the root, so it needs no stage of any other pipeline: checkpoints are scored whoever
made them, and while they are made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any

from infra.ledger import Ledger, snapshot_of
from infra.store import Store
from pipelines.checkpoints import Found
from pipelines.config import Config
from pipelines.graph import Graph
from stages.evaluate.checkpoints import Checkpoints, Listed
from stages.evaluate.generations import Generations
from stages.evaluate.likelihoods import Likelihoods
from stages.evaluate.marks import Marks
from stages.evaluate.opinions import Opinions
from stages.evaluate.questions import Questions
from stages.evaluate.trials import Trials
from stages.evaluate.verdicts import Verdicts


def graph(config: Config) -> Graph:
    """One line a stage."""
    nodes = (
        config.node(Checkpoints),
        config.node(Questions),
        config.node(Likelihoods),
        config.node(Trials),
        config.node(Generations),
        config.node(Verdicts),
        config.node(Opinions),
        config.node(Marks),
    )
    return Graph(config.pipeline, nodes)


def listed(found: Found) -> Listed:
    """A checkpoint of the root as the first stage lists it."""
    return Listed(
        files_sha256=found.checkpoint.files_sha256,
        checkpoint=found.checkpoint.manifest,
        checkpoint_sha256=found.checkpoint.manifest_sha256,
        training=found.training,
        begun=found.at,
        step=found.checkpoint.step,
        pixels=found.pixels,
        tokenizer=found.tokenizer[0],
        tokenizer_sha256=found.tokenizer[1],
        text_tokenizer=found.text_tokenizer[0],
        text_tokenizer_sha256=found.text_tokenizer[1],
        data=json.dumps(found.data, sort_keys=True),
    )


def with_listed(graph: Graph, found: Sequence[Listed]) -> Graph | None:
    """The pipeline over these checkpoints; None where there are none."""
    if not found:
        return None
    nodes = (
        replace(node, stage=Checkpoints(listed=tuple(found))) if node.name == Checkpoints.writes else node
        for node in graph
    )
    return Graph(graph.name, tuple(nodes))


def scored(store: Store) -> list[Listed]:
    """The checkpoints that have scores, or are being scored: they keep them when their files are gone."""
    columns = tuple(field.name for field in fields(Listed))
    return [Listed(**row) for row in rows_of(store, Checkpoints.writes, columns)]


def lags(found: Sequence[Listed], marked: Collection[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Of each training: how many of its checkpoints have no score, and how many steps lie between the newest one that
    has and the newest. `marked`: training and step of those that have."""
    told: dict[str, tuple[int, int]] = {}
    for training in dict.fromkeys(one.training for one in found):
        steps = {one.step for one in found if one.training == training}
        bare = {step for step in steps if (training, step) not in marked}
        told[training] = len(bare), max(steps) - max(steps - bare, default=0)
    return told


def rows_of(store: Store, dataset: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a dataset as it was made last."""
    dones = Ledger(store.bucket).dones(dataset)
    return store.scan(snapshot_of(dones[-1]), list(columns)).to_pylist() if dones else []


def is_called(manifest: str, training: str, step: int, target: str) -> bool:
    """Whether a person's name for a checkpoint means this one: its manifest, or TRAINING/step-N, or TRAINING."""
    bare = target.rstrip("/").removesuffix(".json")
    of, _, name = bare.rpartition("/")
    short = training.startswith(of or bare) and (not of or name == f"step-{step:06d}")
    return bare.endswith(manifest.removesuffix(".json")) or short or bare == f"step-{step:06d}"
