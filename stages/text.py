"""Texts: what they are (language, letters, length), which say the same, and those that are kept."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from infra.types import UserError
from stages.base import Edge, Job, JobStage, Outcome, Row, RowStage, above_zero

if TYPE_CHECKING:
    import numpy as np

    from stages.base import Kit

_SEED = 42
_LONGEST = 20_000
"""Letters that the language is told from: more change nothing, and cost."""
_BAD = ("Cc", "Cn", "Co", "Cs")
"""Unicode categories that no text holds: control, unassigned, private, surrogate."""


@dataclass(frozen=True, kw_only=True)
class TextScores(RowStage):
    """Measures each text; filters nothing.

    num_chars, num_words  length; words are what stands between spaces, and each ideograph
    bad_share     share of characters that no text holds: U+FFFD, control (but line ends and tabs), private and
                  unassigned ones: a wrong decoding or binary data
    letter_share  share of letters and marks among what is not space: tables, code and noise are low
    language      ISO 639 code that is most likely (py3langid, 97 languages, weights in its wheel)
    sure          how likely, 0 to 1: short and mixed texts are low
    same          8 bytes: equal for texts that are equal but for case, spaces, punctuation and Unicode form
    signature     MinHash of the text's shingles (`shingle` words, or letters for scripts without spaces)
    """

    writes: ClassVar[str] = "text_scores"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("texts", columns=("text",)),)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("num_chars", pa.int64()),
            ("num_words", pa.int64()),
            ("bad_share", pa.float64()),
            ("letter_share", pa.float64()),
            ("language", pa.string()),
            ("sure", pa.float64()),
            ("same", pa.binary(8)),
            ("signature", pa.list_(pa.uint32())),
        ]
    )

    shingle: int = 5
    """Words in a row whose set is compared."""
    num_hashes: int = 128
    """Length of the signature: the error of the likeness is about 1 over its root, 9 %."""

    def __post_init__(self) -> None:
        above_zero(self, "shingle", "num_hashes")

    def setup(self, kit: Kit) -> Any:
        """The language identifier."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Measure each text."""
        return [[self._measured(row["text"], tools)] for row in rows]

    def _measured(self, text: str, identifier: Any) -> Row:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # compiled

        words = _words(text)
        seen = [letter for letter in text if not letter.isspace()]
        bad = sum(letter == "\ufffd" or unicodedata.category(letter) in _BAD for letter in seen)
        letters = sum(unicodedata.category(letter)[0] in "LM" for letter in seen)
        language, sure = identifier.classify(text[:_LONGEST])
        sketch = RMinHash(num_perm=self.num_hashes, seed=_SEED)
        sketch.update(_shingles(words, self.shingle))
        return {
            "num_chars": len(text),
            "num_words": len(words),
            "bad_share": bad / max(1, len(seen)),
            "letter_share": letters / max(1, len(seen)),
            "language": language,
            "sure": round(float(sure), 4),
            "same": hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(),
            "signature": sketch.digest(),
        }


def _words(text: str) -> list[str]:
    """Words without case and punctuation; scripts without spaces give a word per letter."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(_spaced(letter) for letter in plain)
    return spaced.split()


def _spaced(letter: str) -> str:
    if "\u3040" <= letter <= "\u9fff" or letter >= "\U00020000":
        return f" {letter} "
    return letter if unicodedata.category(letter)[0] in "LMN" else " "


def _shingles(words: Sequence[str], length: int) -> list[str]:
    return [" ".join(words[at : at + length]) for at in range(max(1, len(words) - length + 1))]


@dataclass(frozen=True, kw_only=True)
class DistinctTexts(JobStage):
    """The scores of every text again, and which of them say the same.

    duplicate_of  key of the text that stands for it; null where it stands for itself. Among texts that pass the
                  select that this stage stands behind, the longest stands for the others, then the smallest key
    likeness      estimated share of shingles in common (Jaccard), 1 for equal texts; null without a duplicate

    Equal texts are found by `same`; near ones by bands of their signatures (candidates), then by the estimate. The
    result does not depend on the order of rows.
    """

    writes: ClassVar[str] = "distinct_texts"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("texts", columns=("digest",)), Edge("text_scores"))
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            *[f for f in TextScores.schema if f.name not in ("same", "signature")],
            ("passes", pa.bool_()),
            pa.field("duplicate_of", pa.binary(16), nullable=True),
            pa.field("likeness", pa.float64(), nullable=True),
        ]
    )

    min_likeness: float = 0.7
    """Estimated Jaccard likeness from which a text is a near copy (Data-Juicer and Curator: 0.7 to 0.8)."""
    bands: int = 32
    """Bands of the signature: texts that agree in one whole band are compared. 32 of 4 find 0.7 with 99.99 %."""

    def __post_init__(self) -> None:
        above_zero(self, "bands")
        if not 0 < self.min_likeness <= 1:
            raise UserError("distinct_texts.min_likeness is above 0 and at most 1: change it")

    def run(self, job: Job) -> Iterator[Row]:
        """One row per text with scores, in order of its key."""
        passing = {key for batch in job.reader("texts").scan(["key"]) for key in batch["key"].to_pylist()}
        columns = ["key", "label", "parents", *TextScores.schema.names]
        rows = [row for batch in job.reader("text_scores").scan(columns) for row in batch.to_pylist()]
        rows.sort(key=lambda row: (-row["num_chars"], row["parents"][0]))
        stood_for = self._stood_for([row for row in rows if row["parents"][0] in passing])
        job.summary({"texts": len(rows), "passing": len(passing), "duplicates": len(stood_for)})
        for row in sorted(rows, key=lambda row: row["parents"][0]):
            text, scores = row["parents"][0], row.pop("key")
            other, likeness = stood_for.get(text, (None, None))
            kept = {name: value for name, value in row.items() if name not in ("same", "signature")}
            found = {"passes": text in passing, "duplicate_of": other, "likeness": likeness}
            yield kept | found | {"parents": [text, scores]}

    def _stood_for(self, ordered: Sequence[Row]) -> dict[bytes, tuple[bytes, float]]:
        """Each text against those that stand already and share `same` or a band with it."""
        import numpy as np

        found: dict[bytes, tuple[bytes, float]] = {}
        standing: dict[bytes, list[int]] = {}
        signatures = [np.array(row["signature"], np.uint32) for row in ordered]
        for index, row in enumerate(ordered):
            marks = [row["same"], *_banded(signatures[index], self.bands)]
            others = {other for mark in marks for other in standing.get(mark, ())}
            likeness = {other: _likeness(row, ordered[other], signatures, index, other) for other in others}
            best = min(likeness, key=lambda other: (-likeness[other], other), default=None)
            if best is not None and likeness[best] >= self.min_likeness:
                found[row["parents"][0]] = (ordered[best]["parents"][0], likeness[best])
            else:
                for mark in marks:
                    standing.setdefault(mark, []).append(index)
        return found


def _banded(signature: np.ndarray, bands: int) -> list[bytes]:
    """One mark per band: its number and values."""
    rows = max(1, len(signature) // bands)
    parts = [signature[start : start + rows].tobytes() for start in range(0, len(signature), rows)]
    named = [number.to_bytes(4, "big") + part for number, part in enumerate(parts)]
    return [hashlib.blake2b(part, digest_size=8).digest() for part in named]


def _likeness(row: Row, other: Row, signatures: Sequence[np.ndarray], index: int, at: int) -> float:
    return 1.0 if row["same"] == other["same"] else float((signatures[index] == signatures[at]).mean())


@dataclass(frozen=True, kw_only=True)
class CleanTexts(RowStage):
    """The texts that pass, in Unicode's composed form (NFC), without control characters."""

    writes: ClassVar[str] = "clean_texts"
    inputs: ClassVar[tuple[Edge, ...]] = (Edge("texts", columns=("text", "held_out")),)
    content: ClassVar[tuple[str, ...] | None] = ("text",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [("text", pa.string()), ("num_chars", pa.int64()), ("held_out", pa.bool_())]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Clean each text."""
        return [_cleaned(row) for row in rows]


def _cleaned(row: Row) -> Outcome:
    kept = (letter for letter in row["text"] if letter in "\n\t" or unicodedata.category(letter) != "Cc")
    text = unicodedata.normalize("NFC", "".join(kept)).strip()
    return [{"text": text, "num_chars": len(text), "held_out": row["held_out"]}] if text else []
