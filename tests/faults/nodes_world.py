"""A pipeline for a cluster of several nodes: words, one by one and slowly, or a small training over made packs."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.recipe import Parts
from pipelines.config import Config
from pipelines.graph import Graph, Node
from stages.base import Edge, Job, JobStage, RowStage
from stages.ingest import Files, Texts
from stages.pack import Packs
from stages.train.train import Model

WORDS = tuple(f"w{i}" for i in range(48))


def with_source(folder: Path) -> Path:
    """The folder, with the words in the files of a source below it."""
    (folder / "src").mkdir()
    for i in range(4):
        (folder / "src" / f"{i}.txt").write_text(" ".join(WORDS[i::4]))
    return folder


@dataclass(frozen=True, kw_only=True)
class Words(RowStage):
    """Texts to words."""

    writes = "words"
    inputs = (Edge("texts", columns=("text",)),)
    schema = pa.schema([("word", pa.string())])
    content = ("word",)

    def process(self, rows, tools):
        return [[{"word": word, "label": word} for word in row["text"].split()] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Lengths(RowStage):
    """The length of a word, after a while."""

    writes = "lengths"
    inputs = (Edge("words", columns=("word",)),)
    schema = pa.schema([("chars", pa.int64()), ("code", pa.string()), ("told", pa.string())])

    def process(self, rows, tools):
        time.sleep(0.25 * len(rows))
        told = hashlib.sha256(os.environ.get("TOLD_TOKEN", "").encode()).hexdigest()
        return [[{"chars": len(row["word"]), "code": __file__, "told": told}] for row in rows]


@dataclass(frozen=True, kw_only=True)
class MadePacks(JobStage):
    """The packs that tests/stages/test_train.py trains on."""

    writes = "packs"
    inputs = (Edge("files", columns=("path",)),)
    schema = Packs.schema

    def run(self, job: Job) -> Iterator[dict]:
        from tests.stages.fake_job import FakeJob
        from tests.stages.test_train import EMU3, SHAPE, tables

        stage = Packs(layout=EMU3, trunk=SHAPE, flops_per_pack=1e8, max_tokens=900, max_text_tokens=100)
        given = tables([(5 + i % 40, 2 + i % 5) for i in range(90)], [60] * 9)
        with tempfile.TemporaryDirectory() as name:
            for row in stage.run(FakeJob(Path(name), given)):
                yield {**row, "parents": []}


@dataclass(frozen=True, kw_only=True)
class NoTokenizer(JobStage):
    """A row where a tokenizer would be: nothing is drawn from its codebook."""

    writes = "tokenizer"
    inputs = (Edge("files", columns=("path",)),)
    schema = pa.schema([("step", pa.int64())])

    def run(self, job: Job) -> Iterator[dict]:
        yield {"step": 0, "parents": []}


def graph(config: Config) -> Graph:
    """files -> texts -> words -> lengths."""
    nodes = (config.node(Files), config.node(Texts), config.node(Words), config.node(Lengths))
    return Graph("words", nodes)


def brief(config: Config) -> Graph:
    """The training, of four steps."""
    return training(config, 4)


def training(config: Config, steps: int = 40) -> Graph:
    """files -> packs, tokenizer -> model."""
    from tests.stages.test_train import SHAPE

    settings: dict[str, Any] = {"steps": steps, "checkpoint_every": 10, "learning_rate": 5e-3, "warmup": 3}
    model = Model(trunk=SHAPE, parts=Parts(), global_batch=4, **settings)
    place = config.placement
    stages = (
        config.node(Files),
        Node(MadePacks(), None, place("packs")),
        Node(NoTokenizer(), None, place("tokenizer")),
    )
    return Graph("training", (*stages, Node(model, None, place("model"))))
