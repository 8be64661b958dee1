"""Small graphs of every shape over toy stages, whose stages fail while a file asks them to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.graph import Graph, Node, Select
from stages.base import Edge, JobStage, RowStage, TransientError
from stages.ingest import Files, Texts
from tests.toy import Words

FAILURES = ("transient", "death", "setup", "poison")
SHAPES = {
    "chain": ("left", "after"),
    "fan_out": ("left", "right"),
    "union": ("left", "right", "both"),
    "gated": ("left", "right"),
    "side": ("left", "tally", "sided"),
}


def flag(failure: str, stage: str) -> Path:
    """While this file is there, the stage fails so; a death takes the file with it."""
    return Path(f"{os.environ['TOY_BUSY']}-{failure}-{stage}")


class Step(RowStage):
    """Hands each word on, under one condition."""

    schema = pa.schema([("word", pa.string())])

    def setup(self, kit):
        """Nothing to load."""
        if flag("setup", self.writes).exists():
            raise RuntimeError(f"{self.writes} cannot be set up")

    def process(self, rows, tools):
        """The same words."""
        return [self._one(row["word"]) for row in rows]

    def _one(self, word):
        if word == "victim" and flag("transient", self.writes).exists():
            raise TransientError("the endpoint answered 503")
        if word == "victim" and flag("poison", self.writes).exists():
            raise ValueError("the victim is at fault")
        if word == "victim" and flag("death", self.writes).exists():
            flag("death", self.writes).unlink()
            os.kill(os.getpid(), 9)
        return [{"word": word}]


def of(dataset: str, **kwargs) -> Edge:
    """An edge on the words of a dataset."""
    return Edge(dataset, columns=("word",), **kwargs)


@dataclass(frozen=True, kw_only=True)
class Left(Step):
    """Words."""

    writes = "left"
    inputs = (of("words"),)


@dataclass(frozen=True, kw_only=True)
class Right(Step):
    """Words again, under a select where the shape has one."""

    writes = "right"
    inputs = (of("words"),)


@dataclass(frozen=True, kw_only=True)
class After(Step):
    """One further."""

    writes = "after"
    inputs = (of("left"),)


@dataclass(frozen=True, kw_only=True)
class Both(Step):
    """The union of two branches."""

    writes = "both"
    inputs = (of("left"), of("right"))


@dataclass(frozen=True, kw_only=True)
class Tally(JobStage):
    """A job over one branch."""

    writes = "tally"
    inputs = (of("left"),)
    schema = pa.schema([("num_words", pa.int64())])

    def run(self, job):
        """One row."""
        if flag("setup", "tally").exists() or flag("transient", "tally").exists():
            raise TransientError("the endpoint answered 503")
        num_words = sum(len(batch["word"]) for batch in job.reader("left").scan(["word"]))
        yield {"num_words": num_words, "parents": []}


@dataclass(frozen=True, kw_only=True)
class Sided(Step):
    """Words, and the tally as a setting."""

    writes = "sided"
    inputs = (of("left"), Edge("tally", role="side"))

    def setup(self, kit):
        """The tally."""
        super().setup(kit)
        assert kit.rows("tally", ["num_words"])["num_words"][0].as_py() > 0


STAGES = {s.writes: s for s in (Left, Right, After, Both, Tally, Sided)}


def graph_of(shape: str, config) -> Graph:
    """The graph of a shape: files, texts, words, then its own stages."""
    select = Select("left", "words", {"short": "length(word) < 5 or word = 'victim'"})
    nodes = [config.node(s) for s in (Files, Texts, Words)]
    for name in SHAPES[shape]:
        gated = shape == "gated" and name == "right"
        nodes.append(Node(STAGES[name](), select if gated else None, config.placement(name)))
    return Graph(shape, tuple(nodes))


def chain(config):
    """See SHAPES."""
    return graph_of("chain", config)


def fan_out(config):
    """See SHAPES."""
    return graph_of("fan_out", config)


def union(config):
    """See SHAPES."""
    return graph_of("union", config)


def gated(config):
    """See SHAPES."""
    return graph_of("gated", config)


def side(config):
    """See SHAPES."""
    return graph_of("side", config)
