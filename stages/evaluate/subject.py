"""What is scored, and the held-out rows it is scored on. Not a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.layout import Format, Picture, document
from models.vocabulary import TEXT, VISION
from stages.base import Reader, Row
from stages.pictures import picture_of

if TYPE_CHECKING:
    from models.any_to_any import AnyToAny
    from models.raster import TextTokenizer
    from models.tokenizers.interface import VisionTokenizer
    from stages.evaluate.heldout_loss import Heldout

PICTURE_COLUMNS = (
    "grids", "ids", "input_ids", "latents", "features", "feature_grid", "codebook_size", "fps", "num_frames", "size",
)  # fmt: skip
CAPTION = 3
"""What is measured beside TEXT and VISION: a caption's own tokens after its picture."""


@dataclass(frozen=True)
class Subject:
    """What is scored."""

    model: AnyToAny
    text: TextTokenizer
    tokenizer: VisionTokenizer
    step: int

    @property
    def form(self) -> Format:
        """How its documents are written."""
        return self.model.form

    def row(self, suite: str, parent: bytes, prompt: str, output: str, judge: str, score: float) -> Row:
        """One scored sample."""
        said = {"suite": suite, "step": self.step, "prompt": prompt, "output": output, "judge": judge}
        return said | {"score": float(score), "parents": [parent], "label": f"{suite} {prompt[:40]}"}


@dataclass(frozen=True)
class Pair:
    """A held-out caption with what was extracted of its clip."""

    key: bytes
    text: str
    picture: Picture
    """As it is drawn,"""
    read: Picture
    """and as it is read."""


class Readers(Protocol):
    """Whatever reads datasets by name."""

    def reader(self, dataset: str) -> Reader:
        """Its rows."""
        ...


def held_out_rows(job: Readers, dataset: str, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The first held-out rows in order of key; no other row's columns are read."""
    reader = job.reader(dataset)
    found: list[tuple[bytes, int]] = []
    row = 0
    for batch in reader.scan(["key", "held_out"]):
        for key, held in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if held:
                found.append((key, row))
            row += 1
    chosen = [row for _, row in sorted(found)[:limit]]
    return reader.take(chosen, ["key", "parents", "label", *columns]).to_pylist() if chosen else []


def pairs_of(job: Readers, *, features: bool) -> list[Pair]:
    """Held-out captions with the largest picture of their clip that is held out, in order of the caption's key."""
    everything = 2**62
    rows = sorted(held_out_rows(job, "indices", PICTURE_COLUMNS, everything), key=lambda row: row["size"])
    visual = {row["parents"][0]: row for row in rows}
    captions = held_out_rows(job, "captions", ("text",), everything)
    chosen = [(caption, visual.get(caption["parents"][0])) for caption in captions]
    return [
        Pair(caption["key"], caption["text"], picture_of(row), picture_of(row, features=features))
        for caption, row in chosen
        if row is not None
    ]


def pair_documents(pair: Pair, subject: Subject) -> list[Heldout]:
    """Drawn: the codes after their caption, and the caption unaided where the recipe learns that. Read: the caption
    after its picture."""
    from stages.evaluate.heldout_loss import Heldout

    words = subject.text.encode(pair.text)
    drawn = document([words, pair.picture], subject.form, subject.text)
    tokens, _, _ = drawn.joined()
    measured = np.where(subject.form.vocabulary.modality(tokens) == VISION, VISION, -1).astype(np.int8)
    if subject.form.layout.supervise == "all":
        measured[1 : 1 + len(words)] = TEXT
    found = [Heldout(key=pair.key, prompt=pair.text, document=drawn, tokens=tokens, measured=measured)]
    read = document([pair.read, words], subject.form, subject.text)
    tokens, _, _ = read.joined()
    measured = np.full(len(tokens), -1, np.int8)
    measured[len(tokens) - 1 - len(words) : -1] = CAPTION
    return [*found, Heldout(key=pair.key, prompt=pair.text, document=read, tokens=tokens, measured=measured)]


def text_document(row: Row, subject: Subject) -> Heldout:
    """A text, of which everything but BOS and EOS is measured."""
    from stages.evaluate.heldout_loss import Heldout

    made = document([subject.text.encode(row["text"])], subject.form, subject.text)
    tokens, _, _ = made.joined()
    measured = np.full(len(tokens), TEXT, np.int8)
    measured[[0, -1]] = -1
    return Heldout(key=row["key"], prompt=row["text"][:200], document=made, tokens=tokens, measured=measured)
