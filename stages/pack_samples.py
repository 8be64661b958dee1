"""The samples of the packs: what each is and costs, found without its codes; and their documents, built later.

Not a stage. First pass: 16-byte places, costs and row numbers only, so that ten million samples fit in memory; second
pass: the rows of one group at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from models import flops, raster
from models.layout import Document, Format, Part, Picture, document, spans
from stages.base import Job, Row
from stages.pictures import duration_s, finest, picture_of

if TYPE_CHECKING:
    from models.raster import Grid, TextTokenizer
    from stages.pack import Packs

Task = Literal["generation", "understanding", "text"]
TASKS: tuple[Task, ...] = ("generation", "understanding", "text")
HELD_OUT = "held out for evaluation"
UNSEEN = "no phase takes it, or its source is seen less than once"
_INDEX_COLUMNS = ("grids", "feature_grid", "fps", "num_frames", "size", "held_out")
_PICTURE_COLUMNS = ("key", "grids", "ids", "input_ids", "latents", "codebook_size", "fps", "num_frames")


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
class _Seen:
    """What the first pass keeps of a row of indices."""

    row: int
    key: bytes
    grids: tuple[Grid, ...]
    features: tuple[Grid, ...]
    size: str
    pixels: int
    film: bool


@dataclass(frozen=True)
class _Outline:
    """What a picture adds to a document."""

    places: int
    extra: int
    """Pairs of places that see each other both ways, beyond the causal ones."""
    learnt: int


class Corpus:
    """Reads captions, indices and texts for one format."""

    def __init__(self, job: Job, stage: Packs, form: Format, text: TextTokenizer) -> None:
        self.job, self.stage, self.form, self.text = job, stage, form, text
        self.readers = {name: job.reader(name) for name in ("captions", "indices", "texts")}
        self._outlines: dict[tuple[Any, ...], _Outline] = {}

    def samples(self) -> dict[str, Samples]:
        """Samples by phase; rows that give none are rejected with the reason."""
        found = {name: Samples() for name in self.stage.all_phases()}
        pairs = list(self._pairs())
        texts = list(self._texts())
        used: set[bytes] = set()
        of_pairs, of_texts = self._repeats(len(pairs), sum(len(pieces) for *_, pieces in texts))
        for caption, seen, task, number_words in pairs:
            place = digest(caption[1], seen.key)
            wanted = of_pairs * self._times(caption[2])
            if self._add_pair(found, (caption, seen, task, number_words), place, wanted):
                used.add(caption[1])
            else:
                self.job.reject(seen.key, caption[2], UNSEEN)
        for key, label in dict.fromkeys((caption[1], caption[2]) for caption, *_ in pairs):
            if key not in used:
                self.job.reject(key, label, UNSEEN)
        for row, key, label, pieces in texts:
            wanted = of_texts * self._times(label)
            before = sum(map(len, found.values()))
            for part, length in enumerate(pieces):
                place = digest(key, *([part.to_bytes(4, "big")] if part else []))
                for again in _repeated(place, wanted):
                    ended = part == len(pieces) - 1
                    for samples in found.values():
                        self._add(samples, again, "text", row, -1, part, self._text_cost(length, ended=ended))
            if sum(map(len, found.values())) == before:
                self.job.reject(key, label, UNSEEN)
        return found

    def _add_pair(
        self, found: Mapping[str, Samples], pair: tuple[Any, _Seen, Task, int], place: bytes, wanted: float
    ) -> int:
        """How often it is seen, over all phases."""
        caption, seen, task, number_words = pair
        times = 0
        for name, phase in self.stage.all_phases().items():
            if (phase.size is not None and seen.pixels != phase.size) or (seen.film and not phase.video):
                continue
            for again in _repeated(place, wanted):
                dropped = task == "generation" and _share(b"drop", again) < self.stage.caption_drop
                cost = self._pair_cost(seen, task, 0 if dropped else number_words)
                self._add(found[name], again, task, caption[0], seen.row, -1 if dropped else 0, cost)
                times += 1
        return times

    def _add(
        self, samples: Samples, place: bytes, task: Task, words: int, visual: int, part: int, cost: tuple[int, float]
    ) -> None:
        samples.places.append(place)
        samples.tasks.append(TASKS.index(task))
        samples.words.append(words)
        samples.visual.append(visual)
        samples.parts.append(part)
        samples.tokens.append(cost[0])
        samples.costs.append(cost[1])

    def _times(self, label: str) -> float:
        """How often a sample of this file is seen: that of the longest prefix."""
        fits = [prefix for prefix in self.stage.sources if label.startswith(prefix)]
        return self.stage.sources[max(fits, key=len)] if fits else 1.0

    def _repeats(self, pairs: int, texts: int) -> tuple[float, float]:
        """How often pairs and pieces of texts are seen, each at least once, so that the mixture's shares hold.

        Rounded to sixteenths: a few new samples must not move what all others get. (Pairs are divided between their
        two tasks by hash, so those shares hold by themselves.)
        """
        mixture = self.stage.mixture
        drawn, read, text = (mixture.get(task, 0.0) for task in TASKS)
        if not text or not pairs or not texts:
            return 1.0, 1.0
        one, other = (drawn + read) / pairs, text / texts
        return round(16 * one / min(one, other)) / 16, round(16 * other / min(one, other)) / 16

    def _pairs(self) -> Iterator[tuple[tuple[int, bytes, str], _Seen, Task, int]]:
        """Captions joined with the indices of their clip: (row, key, label), what was seen, task, words."""
        by_clip = self._indices()
        used: set[bytes] = set()
        share = self._understanding()
        for row, caption in self._kept("captions", ("text",)):
            clip = caption["parents"][0]
            if clip not in by_clip:
                self.job.reject(caption["key"], caption["label"], "caption of a clip that has no indices")
                continue
            used.add(clip)
            number_words = len(self.text.encode(caption["text"]))
            for seen in by_clip[clip]:
                place = digest(caption["key"], seen.key)
                task: Task = "understanding" if _share(b"order", place) < share else "generation"
                yield (row, caption["key"], caption["label"]), seen, task, number_words
        for clip, rows in by_clip.items():
            if clip not in used:
                for seen in rows:
                    self.job.reject(seen.key, "", "indices of a clip that has no caption")

    def _understanding(self) -> float:
        """Share of the pairs whose caption comes last."""
        drawn, read = (self.stage.mixture.get(task, 0.0) for task in ("generation", "understanding"))
        return read / (drawn + read) if drawn + read else 0.0

    def _indices(self) -> dict[bytes, list[_Seen]]:
        found: dict[bytes, list[_Seen]] = {}
        interned: dict[Any, Any] = {}
        for row, one in self._kept("indices", _INDEX_COLUMNS):
            grids: tuple[Grid, ...] = tuple((t, h, w) for t, h, w in one["grids"])
            features: tuple[Grid, ...] = ()
            if one["feature_grid"]:
                t, h, w = one["feature_grid"]
                features = ((t, h, w),)
            size = raster.size_text(finest(grids), one["fps"], duration_s(one))
            grids, features, size = (interned.setdefault(x, x) for x in (grids, features, size))
            seen = _Seen(row, one["key"], grids, features, size, one["size"], one["fps"] is not None)
            found.setdefault(one["parents"][0], []).append(seen)
        return found

    def _texts(self) -> Iterator[tuple[int, bytes, str, list[int]]]:
        """Row, key, label and length of each piece of every text."""
        if self.stage.mixture.get("text", 1.0) == 0.0:
            for _, one in self._kept("texts", ()):
                self.job.reject(one["key"], one["label"], "the mixture gives texts no share")
            return
        for row, one in self._kept("texts", ("text",)):
            yield row, one["key"], one["label"], [len(piece) for piece in self._pieces(one["text"])]

    def _pieces(self, text: str) -> list[list[int]]:
        """Ids of a text, in pieces of at most `max_text_tokens` with BOS and EOS."""
        ids, room = self.text.encode(text), self.stage.max_text_tokens - 2
        return [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]

    def _kept(self, dataset: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """Rows to train on by their position; held-out ones are rejected."""
        row = 0
        for batch in self.readers[dataset].scan(["key", "parents", "label", "held_out", *columns]):
            for one in batch.to_pylist():
                if one["held_out"]:
                    self.job.reject(one["key"], one["label"], HELD_OUT)
                else:
                    yield row, one
                row += 1

    def _text_cost(self, length: int, *, ended: bool) -> tuple[int, float]:
        weighs = self.form.layout.supervise != "vision" and self.form.layout.text_weight > 0
        places = 1 + length + ended
        return places, self._cost(places, 0, (places - 1) * weighs)

    def _pair_cost(self, seen: _Seen, task: Task, number_words: int) -> tuple[int, float]:
        """Of the picture's outline and so many words."""
        outline = self._outline(seen, task)
        supervise = self.form.layout.supervise
        weighs = supervise == "all" or (supervise == "last" and task == "understanding")
        learnt = outline.learnt + number_words * (weighs and self.form.layout.text_weight > 0)
        places = outline.places + number_words
        return places, self._cost(places, outline.extra, learnt)

    def _outline(self, seen: _Seen, task: Task) -> _Outline:
        read = self.form.layout.features and task == "understanding"
        grids = seen.features if read else seen.grids
        name = (grids, task, seen.size)
        if name not in self._outlines:
            count = sum(t * h * w for t, h, w in grids)
            blank = Picture(grids=grids, vectors=np.zeros((count, 1), np.float16))
            if not read and self.form.layout.vision != "latents":
                blank = Picture(grids=grids, ids=np.zeros(count, np.int64))
            made = document([blank] if task == "generation" else [blank, []], self.form, self.text)
            both = spans(made.segments)
            total = sum(length for length, _ in both)
            learnt = sum(int(np.count_nonzero(part)) for part in made.weights)
            head = len(self.text.encode(seen.size)) - len(self.text.encode(raster.size_text(finest(grids))))
            head = head if self.form.layout.marks.size and not read else 0
            self._outlines[name] = _Outline(
                places=total + head, extra=flops.segment_pairs(both) - flops.causal_pairs(total), learnt=learnt + head
            )
        return self._outlines[name]

    def _cost(self, places: int, extra: int, learnt: int) -> float:
        pairs = flops.causal_pairs(places) + extra
        return flops.cost(self.stage.trunk, self.form.vocabulary.size, places, pairs, learnt).train

    def documents(self, samples: Samples, chosen: Sequence[int]) -> dict[int, tuple[Document, list[bytes], str]]:
        """Document, parents and label of each chosen sample; every row is read once."""
        words = self._rows("captions", [samples.words[n] for n in chosen if samples.visual[n] >= 0], ("text",))
        texts = self._rows("texts", [samples.words[n] for n in chosen if samples.visual[n] < 0], ("text",))
        columns = [*_PICTURE_COLUMNS[1:], "features", "feature_grid"]
        pictures = self._rows("indices", [samples.visual[n] for n in chosen if samples.visual[n] >= 0], columns)
        found: dict[int, tuple[Document, list[bytes], str]] = {}
        for n in chosen:
            if samples.visual[n] < 0:
                row = texts[samples.words[n]]
                pieces = self._pieces(row["text"])
                part = samples.parts[n]
                made = document([pieces[part]], self.form, self.text, ended=part == len(pieces) - 1)
                found[n] = made, [row["key"]], row["label"]
                continue
            caption, visual = words[samples.words[n]], pictures[samples.visual[n]]
            ids = self.text.encode(caption["text"]) if samples.parts[n] >= 0 else []
            task = TASKS[samples.tasks[n]]
            shown = picture_of(visual, features=self.form.layout.features and task == "understanding")
            parts: list[Part] = [shown, ids] if task == "understanding" else [ids, shown]
            found[n] = document(parts, self.form, self.text), [caption["key"], visual["key"]], caption["label"]
        return found

    def _rows(self, dataset: str, rows: Sequence[int], columns: Sequence[str]) -> dict[int, Row]:
        wanted = sorted(set(rows))
        if not wanted:
            return {}
        taken = self.readers[dataset].take(wanted, ["key", "label", *columns]).to_pylist()
        return dict(zip(wanted, taken, strict=True))


def digest(*parts: bytes) -> bytes:
    """16 bytes."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _share(salt: bytes, place: bytes) -> float:
    """A number in [0, 1) that follows from the place."""
    return int.from_bytes(digest(salt, place)[:8], "big") / 2**64


def _repeated(place: bytes, wanted: float) -> Iterator[bytes]:
    """A place for each time that a sample is seen: the whole times, and once more for the share that is left."""
    times = int(wanted) + (_share(b"again", place) < wanted - int(wanted))
    for number in range(times):
        yield digest(place, number.to_bytes(4, "big")) if number else place
