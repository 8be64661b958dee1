"""The samples of the packs: what each is and costs, found without its codes: a few hundred bytes each. Not a stage.

Their documents are written later, group by group: pack_documents.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models import flops, raster
from models.layout import Format, Picture, document, finest, spans
from stages.base import Job, Row
from stages.pack_documents import MIXED, TASKS, Samples, Task, Writer
from stages.pictures import duration_s

if TYPE_CHECKING:
    from models.raster import Grid, TextTokenizer
    from stages.pack import Packs

HELD_OUT = "held out for evaluation"
UNSEEN = "no phase takes it, or its source is seen less than once"
_INDEX_COLUMNS = ("grids", "feature_grid", "fps", "num_frames", "size", "held_out")


@dataclass(frozen=True)
class _Seen:
    """What the first pass keeps of a row of indices."""

    row: int
    key: bytes
    label: str
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
        names = [edge.dataset for edge in stage.inputs if edge.role == "rows"]
        self.readers = {name: job.reader(name) for name in names}
        self.writer = Writer(self.readers, form, text, stage.max_text_tokens)
        self._outlines: dict[tuple[Any, ...], _Outline] = {}

    def samples(self) -> dict[str, Samples]:
        """Samples by phase; rows that give none are rejected with the reason."""
        found = {name: Samples() for name in self.stage.all_phases()}
        pairs = list(self._pairs())
        texts = list(self._texts())
        mixed = list(self._mixed()) if MIXED in self.readers else []
        of_pairs, of_texts, of_mixed = self._repeats(len(pairs), sum(len(p) for *_, p in texts), len(mixed))
        self.job.summary({"times_seen/pairs": of_pairs, "times_seen/texts": of_texts, "times_seen/mixed": of_mixed})
        used = {pair[0][1] for pair in pairs if self._add_pair(found, pair, of_pairs * self._times(pair[0][2]))}
        for key, label in dict.fromkeys((caption[1], caption[2]) for caption, *_ in pairs):
            if key not in used:
                self.job.reject(key, label, UNSEEN)
        for row, key, label, pieces in texts:
            last = len(pieces) - 1
            places = [digest(key, *([part.to_bytes(4, "big")] if part else [])) for part in range(len(pieces))]
            costs = [self._text_cost(length, ended=part == last) for part, length in enumerate(pieces)]
            self._add_alike(found, "text", row, (key, label), places, costs, of_texts)
        for row, key, label, cost in mixed:
            self._add_alike(found, "mixed", row, (key, label), [digest(key)], [cost], of_mixed)
        return found

    def _add_alike(
        self,
        found: Mapping[str, Samples],
        task: Task,
        row: int,
        name: tuple[bytes, str],
        places: Sequence[bytes],
        costs: Sequence[tuple[int, float]],
        wanted: float,
    ) -> None:
        """The pieces of one row, for every phase; rejected where no piece is seen."""
        seen = False
        for part, (place, cost) in enumerate(zip(places, costs, strict=True)):
            for again in _repeated(place, wanted * self._times(name[1])):
                seen = True
                for samples in found.values():
                    self._add(samples, again, task, row, -1, part, cost)
        if not seen:
            self.job.reject(*name, UNSEEN)

    def _add_pair(
        self, found: Mapping[str, Samples], pair: tuple[tuple[int, bytes, str], _Seen, Task, int], wanted: float
    ) -> bool:
        """For the phases that take it; whether it is seen at all (else its indices are rejected)."""
        caption, seen, task, number_words = pair
        place, times = digest(caption[1], seen.key), 0
        for name, phase in self.stage.all_phases().items():
            if (phase.size is not None and seen.pixels != phase.size) or (seen.film and not phase.video):
                continue
            for again in _repeated(place, wanted):
                dropped = task == "generation" and _share(b"drop", again) < self.stage.caption_drop
                cost = self._pair_cost(seen, task, 0 if dropped else number_words)
                self._add(found[name], again, task, caption[0], seen.row, -1 if dropped else 0, cost)
                times += 1
        if not times:
            self.job.reject(seen.key, caption[2], UNSEEN)
        return times > 0

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

    def _repeats(self, pairs: int, texts: int, mixed: int) -> tuple[float, float, float]:
        """How often pairs, pieces of texts and mixed documents are seen, each at least once, so that the mixture's
        shares hold; one without a share is seen once.

        Rounded to sixteenths: a few new samples must not move what all others get. (Pairs are divided between their
        two tasks by hash, so those shares hold by themselves.)
        """
        drawn, read, text, both = (self.stage.mixture.get(task, 0.0) for task in TASKS)
        wanted = [(drawn + read, pairs), (text, texts), (both, mixed)]
        rates = [share / count if share and count else None for share, count in wanted]
        least = min((rate for rate in rates if rate), default=1.0)
        one, other, third = (1.0 if rate is None else round(16 * rate / least) / 16 for rate in rates)
        return one, other, third

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
                    self.job.reject(seen.key, seen.label, "indices of a clip that has no caption")

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
            seen = _Seen(row, one["key"], one["label"], grids, features, size, one["size"], one["fps"] is not None)
            found.setdefault(one["parents"][0], []).append(seen)
        return found

    def _texts(self) -> Iterator[tuple[int, bytes, str, list[int]]]:
        """Row, key, label and length of each piece of every text."""
        if self.stage.mixture.get("text", 1.0) == 0.0:
            for _, one in self._kept("texts", ()):
                self.job.reject(one["key"], one["label"], "the mixture gives texts no share")
            return
        for row, one in self._kept("texts", ("text",)):
            yield row, one["key"], one["label"], [len(piece) for piece in self.writer.pieces(one["text"])]

    def _mixed(self) -> Iterator[tuple[int, bytes, str, tuple[int, float]]]:
        """Row, key, label and cost of each document with several pictures."""
        for row, one in self._kept(MIXED, ("pictures", "texts")):
            made = document(self.writer.in_turn(one), self.form, self.text)
            both = spans(made.segments)
            places = sum(length for length, _ in both)
            learnt = sum(int(np.count_nonzero(part)) for part in made.weights)
            extra = flops.segment_pairs(both) - flops.causal_pairs(places)
            yield row, one["key"], one["label"], (places, self._cost(places, extra, learnt))

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
            blank = Picture(grids=grids, vectors=np.zeros((count, 1), np.float16), features=read)
            if not read and self.form.layout.vision != "latents":
                blank = Picture(grids=grids, ids=np.zeros(count, np.int64))
            made = document([blank] if task == "generation" else [blank, []], self.form, self.text)
            both = spans(made.segments)
            total = sum(length for length, _ in both)
            learnt = sum(int(np.count_nonzero(part)) for part in made.weights)
            head = len(self.text.encode(seen.size)) - len(self.text.encode(raster.size_text(finest(grids))))
            head = head if self.form.layout.marks.size and not read else 0
            self._outlines[name] = _Outline(
                places=total + head,
                extra=flops.segment_pairs(both) - flops.causal_pairs(total),
                learnt=learnt + head * bool(made.weights[1].any()),
            )
        return self._outlines[name]

    def _cost(self, places: int, extra: int, learnt: int) -> float:
        pairs = flops.causal_pairs(places) + extra
        return flops.cost(self.stage.trunk, self.form.vocabulary.size, places, pairs, learnt).train


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
