"""The documents of samples, written when their pack is. Not a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.layout import Document, Format, Part, document
from models.raster import TextTokenizer
from stages.base import Reader, Row
from stages.pictures import picture_of

Task = Literal["generation", "understanding", "text", "mixed"]
TASKS: tuple[Task, ...] = ("generation", "understanding", "text", "mixed")
MIXED = "interleaved_indices"
"""The dataset of documents with several pictures, where the pipeline has it."""
_PICTURE_COLUMNS = (
    "grids",
    "ids",
    "input_ids",
    "latents",
    "features",
    "feature_grid",
    "codebook_size",
    "fps",
    "num_frames",
)


@dataclass
class Samples:
    """Columns of all samples of a phase, N entries each."""

    places: list[bytes] = field(default_factory=list)
    """H(member keys): decides group and order."""
    tasks: list[int] = field(default_factory=list)
    """Of `TASKS`."""
    words: list[int] = field(default_factory=list)
    """Row of the caption, or of the text."""
    visual: list[int] = field(default_factory=list)
    """Row of the indices; -1: a text."""
    parts: list[int] = field(default_factory=list)
    """Which piece of a long text; -1 where the caption is left out."""
    tokens: list[int] = field(default_factory=list)
    """Places in the trunk."""
    costs: list[float] = field(default_factory=list)
    """Training FLOPs."""

    def __len__(self) -> int:
        return len(self.places)

    def keys(self) -> NDArray[np.uint8]:
        """(N, 16)."""
        return np.frombuffer(b"".join(self.places), np.uint8).reshape(-1, 16)


@dataclass(frozen=True)
class Writer:
    """Reads the rows of samples, each once, and writes their documents."""

    readers: Mapping[str, Reader]
    form: Format
    text: TextTokenizer
    max_text_tokens: int

    def documents(self, samples: Samples, chosen: Sequence[int]) -> dict[int, tuple[Document, list[bytes], str]]:
        """Document, parents and label of each chosen sample; every row is read once."""
        of = {name: [n for n in chosen if self._dataset(samples, n) == name] for name in ("captions", "texts", MIXED)}
        words = self._rows("captions", [samples.words[n] for n in of["captions"]], ("text",))
        texts = self._rows("texts", [samples.words[n] for n in of["texts"]], ("text",))
        mixed = self._rows(MIXED, [samples.words[n] for n in of[MIXED]], ("pictures", "texts"))
        pictures = self._rows("indices", [samples.visual[n] for n in of["captions"]], _PICTURE_COLUMNS)
        found: dict[int, tuple[Document, list[bytes], str]] = {}
        for n in of["texts"]:
            row = texts[samples.words[n]]
            pieces, part = self.pieces(row["text"]), samples.parts[n]
            made = document([pieces[part]], self.form, self.text, ended=part == len(pieces) - 1)
            found[n] = made, [row["key"]], row["label"]
        for n in of[MIXED]:
            row = mixed[samples.words[n]]
            found[n] = document(self.in_turn(row), self.form, self.text), [row["key"]], row["label"]
        for n in of["captions"]:
            caption, visual = words[samples.words[n]], pictures[samples.visual[n]]
            ids = self.text.encode(caption["text"]) if samples.parts[n] >= 0 else []
            task = TASKS[samples.tasks[n]]
            shown = picture_of(visual, features=self.form.layout.features and task == "understanding")
            parts: list[Part] = [shown, ids] if task == "understanding" else [ids, shown]
            found[n] = document(parts, self.form, self.text), [caption["key"], visual["key"]], caption["label"]
        return found

    @staticmethod
    def _dataset(samples: Samples, n: int) -> str:
        """Where the words of a sample stand."""
        if TASKS[samples.tasks[n]] == "mixed":
            return MIXED
        return "texts" if samples.visual[n] < 0 else "captions"

    def in_turn(self, row: Row) -> list[Part]:
        """Pictures with the texts between them."""
        parts: list[Part] = []
        for place, picture in enumerate(row["pictures"]):
            parts.append(picture_of(picture))
            if place < len(row["texts"]):
                parts.append(self.text.encode(row["texts"][place]))
        return parts

    def _rows(self, dataset: str, rows: Sequence[int], columns: Sequence[str]) -> dict[int, Row]:
        wanted = sorted(set(rows))
        if not wanted:
            return {}
        taken = self.readers[dataset].take(wanted, ["key", "label", *columns]).to_pylist()
        return dict(zip(wanted, taken, strict=True))

    def pieces(self, text: str) -> list[list[int]]:
        """Ids of a text, in pieces of at most `max_text_tokens` with BOS and EOS."""
        ids, room = self.text.encode(text), self.max_text_tokens - 2
        return [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]
