"""The answers of checkpoints to the questions of suites."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from infra.types import BadRow, DamagedError
from stages.base import Edge, Kit, Outcome, Row, RowStage, blob
from stages.evaluate.trials import TRIAL_COLUMNS

if TYPE_CHECKING:
    from stages.evaluate.subject import Subject

_PASSED_ON = ("files_sha256", "training", "step", "question", "index", "suite", "task", "prompt", "about", "asks", "evidence")  # fmt: skip  # noqa: E501
_WEIGHTS = ("config.json", "model.safetensors")


@dataclass
class Subjects:
    """The checkpoint that was asked last, in memory: rows of one checkpoint lie together."""

    kit: Kit
    name: str | None = None
    subject: Any = None
    tokenizers: dict[str, Any] = field(default_factory=dict)

    def of(self, row: Row) -> Subject:
        """The checkpoint of a row. Raises BadRow where its files are damaged or gone: no reason to end the run."""
        if self.name != row["files_sha256"]:
            self.name = self.subject = None
            try:
                self.subject = self._loaded(row)
            except DamagedError as error:
                raise BadRow(f"The checkpoint is damaged or gone: {error}.") from error
            self.name = row["files_sha256"]
        return self.subject

    def _loaded(self, row: Row) -> Subject:
        from models.any_to_any import load_model
        from models.tokenizers.interface import load_tokenizer
        from models.tokenizers.text import load_text_tokenizer
        from stages.evaluate.subject import Subject

        vision = self._tokenizer(row["tokenizer"], row["tokenizer_sha256"], load_tokenizer)
        text = self._tokenizer(row["text_tokenizer"], row["text_tokenizer_sha256"], load_text_tokenizer)
        with self.kit.fetch(row["checkpoint"], row["checkpoint_sha256"], _WEIGHTS) as folder:
            model, step = load_model(folder)
        return Subject(model, text, vision, step)

    def _tokenizer(self, manifest: str, sha256: str, load: Any) -> Any:
        if sha256 not in self.tokenizers:
            with self.kit.fetch(manifest, sha256) as folder:
                self.tokenizers[sha256] = load(folder)
        return self.tokenizers[sha256]


@dataclass(frozen=True, kw_only=True)
class Generations(RowStage):
    """What a checkpoint answers to a question: one row per trial, kept, so that it can be judged again and again.

    An answer is drawn from a seed of its own (the suite's seed, the question, the number of the answer): it does not
    depend on which others are drawn beside it, and every checkpoint draws from the same numbers, so that two of them
    can be compared pair by pair.

    media   the picture (png) or film (animated png); null of a text
    text    the text; empty of pictures and films
    """

    writes: ClassVar[str] = "generations"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("trials", columns=TRIAL_COLUMNS),)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("files_sha256", pa.string()),
            ("training", pa.string()),
            ("step", pa.int64()),
            ("question", pa.string()),
            ("index", pa.int64()),
            ("suite", pa.string()),
            ("task", pa.string()),
            ("prompt", pa.string()),
            ("about", pa.string()),
            ("asks", pa.string()),
            ("evidence", pa.string()),
            pa.field("media", pa.large_binary(), nullable=True, metadata=blob("media").metadata),
            ("text", pa.string()),
        ]
    )

    def setup(self, kit: Kit) -> Subjects:
        """Nothing yet: the rows say which checkpoint."""
        import torch

        torch.set_num_threads(1)
        return Subjects(kit)

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Those that want the same of the same checkpoint together."""
        outcomes: list[Outcome] = []
        for _, alike in groupby(rows, key=lambda row: (row["files_sha256"], row["asks"], row["how"])):
            outcomes += self._answered(list(alike), tools)
        return outcomes

    def _answered(self, rows: list[Row], subjects: Subjects) -> Iterator[Outcome]:
        from stages.evaluate.answering import answers

        try:
            subject = subjects.of(rows[0])
        except BadRow as bad:
            return iter([BadRow(str(bad)) for _ in rows])
        made = answers(subject, rows, json.loads(rows[0]["how"]))
        return (
            [{**{name: row[name] for name in _PASSED_ON}, "media": media, "text": text}]
            for row, (media, text) in zip(rows, made, strict=True)
        )
