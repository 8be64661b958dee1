"""A small pipeline over text files: every kind of stage, edge and outcome, in milliseconds a row.

Words that begin with `boom` raise, `die` kill the process, `hang` sleep, `drop` are filtered, those of OF_THE_WORLD
raise its errors while the file named by TOY_BUSY exists, `say` print and log, `slow` take 0.4 s, `nap` 0.2 s in a job.
Every call is counted in the folder TOY_CALLS, one file per call.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from infra.types import UserError
from pipelines.config import Config
from pipelines.graph import Graph, Node, Select
from stages.base import BadRow, Edge, Filtered, Job, JobStage, RowStage, TransientError, since
from stages.ingest import Files, Texts

OF_THE_WORLD = {
    "busy": TransientError("the endpoint answered 503"),
    "lost": ConnectionResetError("peer went away"),
    "keyless": UserError("no credentials for the store"),
}


def count_call(stage: str) -> None:
    """Leave a mark for one processed row."""
    if folder := os.environ.get("TOY_CALLS"):
        Path(folder, f"{stage}-{uuid.uuid4().hex}").touch()


def say(word: str) -> None:
    """Words that begin with `say` are printed and logged."""
    if word.startswith("say"):
        print(f"{word} aloud\nand once more")
        logging.getLogger("toy").warning("%s is strange", word)


@dataclass(frozen=True, kw_only=True)
class Words(RowStage):
    """Split texts into words; `min_chars` drops short ones."""

    writes = "words"
    inputs = (Edge("texts", columns=("text",)),)
    schema = pa.schema([("word", pa.string()), ("place", pa.int64())])
    content = ("word",)
    min_chars: int = 1
    later: str = since("as before")

    def process(self, rows, tools):
        """One row per word."""
        made = []
        for row in rows:
            count_call("words")
            words = [w for w in row["text"].split() if len(w) >= self.min_chars]
            made.append([{"word": w, "place": i, "label": w} for i, w in enumerate(words)])
        return made


@dataclass(frozen=True, kw_only=True)
class Lengths(RowStage):
    """Measure words, and fail in every way."""

    writes = "lengths"
    inputs = (Edge("words", columns=("word",)),)
    schema = pa.schema([("chars", pa.int64())])

    def process(self, rows, tools):
        """One row per word, unless the word says otherwise."""
        return [self._one(row["word"]) for row in rows]

    def _one(self, word):
        count_call("lengths")
        time.sleep(0.4 if word.startswith("slow") else float(os.environ.get("TOY_SLEEP", "0")))
        say(word)
        if word.startswith("boom"):
            raise ValueError(f"the word {word} explodes")
        if word.startswith("bad"):
            return BadRow(f"{word} is bad")
        if word.startswith("die"):
            os.kill(os.getpid(), 9)
        if word.startswith("hang"):
            time.sleep(3600)
        for beginning, error in OF_THE_WORLD.items():
            if word.startswith(beginning) and Path(os.environ.get("TOY_BUSY", "/nowhere")).exists():
                raise error
        if word.startswith("grip"):
            re.match(r"(a+)+$", "a" * 60 + "b")  # for hours, with the interpreter lock held
        if word.startswith("misfit"):
            return [{"chars": "many"}]
        if word.startswith("drop"):
            return Filtered("asked to be dropped")
        return [] if word.startswith("none") else [{"chars": len(word)}]


@dataclass(frozen=True, kw_only=True)
class Upper(RowStage):
    """Shout the selected words."""

    writes = "upper"
    inputs = (Edge("words", columns=("word",)), Edge("book", role="side"))
    schema = pa.schema([("shout", pa.string())])
    mark: str = "!"

    def setup(self, kit):
        """How many words the held book knew."""
        if Path(os.environ.get("TOY_BUSY", "/nowhere") + "-setup-dies").exists():
            os.kill(os.getpid(), 9)
        return kit.rows("book", ["num_words"])["num_words"][0].as_py()

    def process(self, rows, tools):
        """One shout per word."""
        assert tools > 0
        for _ in rows:
            count_call("upper")
        return [[{"shout": row["word"].upper() + self.mark}] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Book(JobStage):
    """A job over held inputs, as the tokenizer is."""

    writes = "book"
    inputs = (Edge("words", columns=("word",), held=True),)
    schema = pa.schema([("num_words", pa.int64())])

    def run(self, job: Job) -> Iterator[dict]:
        """One row for all words."""
        count_call("book")
        step = 0
        for batch in job.reader("words").scan(["word"]):
            for word in batch["word"].to_pylist():
                say(word)
                step += 1
                job.log(step, {"chars": len(word)})
                job.progress(0, 0, word)
                time.sleep(0.2 if word.startswith("nap") else 0)
        words = [w for batch in job.reader("words").scan(["word"]) for w in batch["word"].to_pylist()]
        job.summary({"num_words": len(words)})
        yield {"num_words": len(words), "parents": []}


def graph(config: Config) -> Graph:
    """files -> texts -> words -> lengths (the scores) -> book (held), upper (gated)."""
    select = Select("lengths", "words", config.select or {"short": "chars < 100"})
    place = config.placement
    upper = Upper(**config.settings.get("upper", {}))
    nodes = (
        config.node(Files),
        config.node(Texts),
        config.node(Words),
        config.node(Lengths),
        Node(Book(), select, place("book")),
        Node(upper, select, place("upper")),
    )
    return Graph("toy", nodes)
