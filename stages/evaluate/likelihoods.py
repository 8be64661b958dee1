"""How likely a checkpoint finds documents that were held out: the first thing to look at, and to gate on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from models.vocabulary import TEXT, VISION
from stages.base import Edge, Kit, Outcome, Reader, Row, RowStage
from stages.evaluate.generations import Subjects
from stages.evaluate.judging import VERDICT_SCHEMA
from stages.evaluate.subject import CAPTION, held_out_rows, pair_documents, pairs_of, text_document
from stages.evaluate.suite_heldout import SUITE
from stages.evaluate.trials import CHECKPOINT_COLUMNS

if TYPE_CHECKING:
    from stages.evaluate.heldout_loss import Heldout
    from stages.evaluate.subject import Subject

_TASKS = {TEXT: "text", VISION: "vision", CAPTION: "caption"}


@dataclass(frozen=True, kw_only=True)
class Likelihoods(RowStage):
    """One row per checkpoint, held-out document and modality: nats per token, or of latents the squared error of noise.

    Documents are those of the data that the checkpoint was trained on, with its own tokenizers: losses of checkpoints
    of other tokenizers are no likelihoods of the same thing, and the gates compare what has the same documents alone. A
    checkpoint is one unit: all of its documents or none; one whose data is not known (captions, indices and texts) has
    none.
    """

    writes: ClassVar[str] = "likelihoods"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("checkpoints", columns=(*CHECKPOINT_COLUMNS, "data")),)
    schema: ClassVar[pa.Schema] = VERDICT_SCHEMA

    max_documents: int = 300
    """Most held-out captions, and most held-out texts, the first in order of key; 0: none."""

    def setup(self, kit: Kit) -> Subjects:
        """Nothing yet: the rows say which checkpoint."""
        import torch

        torch.set_num_threads(1)
        return Subjects(kit)

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Checkpoint by checkpoint."""
        return [list(self._measured(row, tools, json.loads(row["data"]))) for row in rows]

    def _measured(self, row: Row, subjects: Subjects, data: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
        from stages.evaluate.heldout_loss import likelihoods

        if not self.max_documents or not {"captions", "indices", "texts"} <= data.keys():
            return
        subject, given = subjects.of(row), _Given(subjects.kit, data)
        documents = list(self._documents(given, subject))
        for one, nats in zip(documents, likelihoods(subject.model, documents), strict=True):
            for kind, task in _TASKS.items():
                chosen = one.measured == kind
                if chosen.any():
                    yield _row(row, one, task, float(nats[chosen].mean()), int(chosen.sum()))
        if subject.form.latent_size:
            yield from _noise(row, subject, documents)

    def _documents(self, given: _Given, subject: Subject) -> Iterator[Heldout]:
        pairs = pairs_of(given, features=subject.form.layout.features)
        for pair in pairs[: self.max_documents]:
            yield from pair_documents(pair, subject)
        for row in held_out_rows(given, "texts", ("text",), self.max_documents):
            yield text_document(row, subject)


@dataclass(frozen=True)
class _Given:
    """The data that a checkpoint was trained on."""

    kit: Kit
    snapshots: Mapping[str, Mapping[str, Any]]

    def reader(self, dataset: str) -> Reader:
        """Its rows at the version that was trained on."""
        return self.kit.reader(self.snapshots[dataset])


def _noise(row: Row, subject: Subject, documents: Sequence[Heldout]) -> Iterator[Row]:
    from stages.evaluate.heldout_loss import noise_errors

    drawn = [one for one in documents if one.document.latents and not (one.measured == CAPTION).any()]
    for one, errors, _ in noise_errors(subject.model, drawn):
        yield _row(row, one, "noise", float(np.mean(errors)), len(errors))


def _row(row: Row, one: Heldout, task: str, score: float, tokens: int) -> Row:
    return {
        **{name: row[name] for name in ("files_sha256", "training", "step")},
        "question": one.key.hex(),
        "index": 0,
        "suite": SUITE,
        "task": task,
        "prompt": one.prompt[:200],
        "judge": "measured",
        "score": score,
        "parts": json.dumps({"tokens": tokens}),
        "features": None,
        "label": f"{row['label']}, {task} of {one.prompt[:40]}",
    }
