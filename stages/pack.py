"""Pack samples into sequences of about equal cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from infra.types import UserError
from models import emu3_format, flops
from models.flops import TrunkShape
from models.tokenizers.codes import unpacked
from models.vocabulary import TEXT, VISION, Vocabulary
from stages import pack_report
from stages.base import Edge, Job, JobStage, Row
from stages.pack_report import Bin, Sample

if TYPE_CHECKING:
    from models.emu3_format import TextTokenizer

_HELD_OUT = "held out for evaluation"
_INDICES = ("grids", "ids", "codebook_size", "tokenizer", "held_out")


@dataclass(frozen=True, kw_only=True)
class Packs(JobStage):
    """Fixed-FLOP sequences of whole samples in Emu3's format, and their order in training.

    A sample is a caption with the codes of its clip (the image after the caption, or before it for a fraction of
    samples chosen by H(key)), or a plain text, cut into pieces where it is longer than `max_text_tokens`. Nothing is
    dropped and images are never cut. Samples are sorted by H(member key) and cut into groups where it is 0 mod
    `group_one_in`; inside a group they go first-fit into at most `open_bins` open packs, which bounds memory
    and lets a new sample change one group only. A pack is full at `flops_per_pack` training FLOPs or
    `max_tokens`, whichever comes first. Packs are not padded: the trainer runs ragged documents.

    Rejects held-out rows, captions without codes and codes without a caption, each with the reason.
    """

    writes: ClassVar[str] = "packs"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("captions", columns=("text", "held_out")),
        Edge("indices", columns=_INDICES),
        Edge("texts", columns=("text", "held_out")),
        Edge("text_tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("tokens", pa.list_(pa.int32())),
            ("loss_weights", pa.list_(pa.float32())),
            (
                "segments",
                pa.list_(
                    pa.struct(
                        [("start", pa.int32()), ("len", pa.int32()), ("kind", pa.string()), ("document", pa.int32())]
                    )
                ),
            ),
            ("num_tokens", pa.int32()),
            ("num_text_tokens", pa.int32()),
            ("num_vision_tokens", pa.int32()),
            ("loss_weight", pa.float64()),
            ("flops", pa.float64()),
            ("order", pa.int64()),
            ("vocabulary", pa.string()),
        ]
    )

    trunk: TrunkShape
    """Sizes of the model the cost is counted for; the same as `model.trunk`."""
    flops_per_pack: float
    """Budget of a pack, training FLOPs (3x forward); at least the cost of the costliest sample."""
    max_tokens: int = 4096
    """Cap on the tokens of a pack: memory."""
    max_text_tokens: int = 512
    """Longer plain texts are cut into pieces of this length."""
    understanding: float = 0.3
    """Fraction of pairs with the caption after the image, 0 to 1."""
    vision_weight: float = 0.5
    """Loss weight of tokens of the vision block (Emu3: 0.5); text has 1."""
    open_bins: int = 8
    """Packs that may be open at once."""
    group_one_in: int = 1024
    """Mean number of samples in a group."""
    seed: int = 0
    """Of the order in training."""

    def run(self, job: Job) -> Iterator[Row]:
        """Read, build the samples, pack, order, report."""
        samples, vocabulary = self._samples(job)
        if not samples:
            return
        samples.sort(key=lambda sample: (sample.place, sample.part))
        packs = self.packed(samples)
        orders = _training_order(packs, self.seed)
        job.summary(pack_report.evenness(packs, samples, self.flops_per_pack, self.trunk, vocabulary))
        job.picture("packs", pack_report.strips(packs, self.max_tokens))
        for pack, order in zip(packs, orders, strict=True):
            yield _row(pack, order, vocabulary)

    def packed(self, samples: Sequence[Sample]) -> list[Bin]:
        """First-fit of samples, sorted by `place`, into bounded open packs, group by group."""
        self._check(samples)
        closed: list[Bin] = []
        opened: list[Bin] = []
        for sample in samples:
            if sample.part == 0 and int.from_bytes(sample.place[8:], "big") % self.group_one_in == 0:
                closed, opened = closed + opened, []
            home = next((pack for pack in opened if self._fits(pack, sample)), None)
            if home is None:
                if len(opened) == self.open_bins:
                    fullest = max(opened, key=lambda pack: pack.cost)
                    opened.remove(fullest)
                    closed.append(fullest)
                home = Bin()
                opened.append(home)
            home.add(sample)
        return closed + opened

    def _fits(self, pack: Bin, sample: Sample) -> bool:
        within_cost = pack.cost + sample.cost <= self.flops_per_pack
        return within_cost and pack.tokens + len(sample.tokens) <= self.max_tokens

    def _check(self, samples: Sequence[Sample]) -> None:
        """Both caps must hold the largest sample: nothing is ever cut or dropped to fit."""
        costly = max(samples, key=lambda sample: sample.cost)
        if costly.cost > self.flops_per_pack:
            raise UserError(
                f"packs.flops_per_pack is {self.flops_per_pack:.6g}, but the costliest sample ({costly.label},"
                f" {len(costly.tokens)} tokens) needs {costly.cost:.6g};"
                f" set packs.flops_per_pack={np.ceil(costly.cost):.0f} or more"
            )
        longest = max(samples, key=lambda sample: len(sample.tokens))
        if len(longest.tokens) > self.max_tokens:
            raise UserError(
                f"packs.max_tokens is {self.max_tokens}, but the longest sample ({longest.label}) has"
                f" {len(longest.tokens)} tokens; set packs.max_tokens={len(longest.tokens)} or more"
            )

    def _samples(self, job: Job) -> tuple[list[Sample], Vocabulary]:
        from models.tokenizers.text import load_text_tokenizer

        text = load_text_tokenizer(job.checkpoint("text_tokenizer"))
        indices = {row["parents"][0]: row for row in _kept(job, "indices", _INDICES)}
        if any(row["ids"] is None or len(row["grids"]) > 1 for row in indices.values()):
            raise UserError(
                "indices hold latents or several scales a clip, the recipe emu3 packs one raster of codes: choose"
                " tokenizer=vq-tiny or tokenizer=emu3-tiny"
            )
        makers = {(row["tokenizer"], row["codebook_size"]) for row in indices.values()} or {("", 0)}
        if len(makers) > 1:
            raise UserError(
                f"indices hold codes of {len(makers)} tokenizers; make them anew with plait run --force --only indices"
            )
        vision_digest, codebook_size = makers.pop()
        vocabulary = Vocabulary.compact(
            text.size,
            codebook_size,
            text_digest=text.digest,
            vision_digest=vision_digest,
        )
        return [*self._pairs(job, indices, vocabulary, text), *self._texts(job, vocabulary, text)], vocabulary

    def _pairs(
        self, job: Job, indices: dict[bytes, Row], vocabulary: Vocabulary, text: TextTokenizer
    ) -> Iterator[Sample]:
        """Captions joined with the codes of their clip."""
        used: set[bytes] = set()
        for caption in _kept(job, "captions", ("text", "held_out")):
            clip = caption["parents"][0]
            if clip not in indices:
                job.reject(caption["key"], caption["label"], "caption of a clip that has no indices")
                continue
            used.add(clip)
            yield self._pair(caption, indices[clip], vocabulary, text)
        for clip, row in indices.items():
            if clip not in used:
                job.reject(row["key"], row["label"], "indices of a clip that has no caption")

    def _pair(self, caption: Row, visual: Row, vocabulary: Vocabulary, text: TextTokenizer) -> Sample:
        place = _digest(caption["key"], visual["key"])
        grid = tuple(visual["grids"][0])
        codes = unpacked(visual["ids"], visual["codebook_size"])
        block = emu3_format.visual_block(grid, codes, vocabulary, text)
        words = text.encode(caption["text"])
        kind: Literal["image", "video"] = "image" if grid[0] == 1 else "video"
        share = int.from_bytes(_digest(b"order", place)[:8], "big") / 2**64
        vision = (block, kind, self.vision_weight)
        if share < self.understanding:
            parts = [([vocabulary.bos], "text", 1.0), vision, ([*words, vocabulary.eos], "text", 1.0)]
        else:
            parts = [([vocabulary.bos, *words], "text", 1.0), vision, ([vocabulary.eos], "text", 1.0)]
        return self._sample((caption["key"], visual["key"]), place, 0, parts, caption["label"], vocabulary)

    def _texts(self, job: Job, vocabulary: Vocabulary, text: TextTokenizer) -> Iterator[Sample]:
        """Plain texts; a long one in pieces, each begun by BOS, only the last ended by EOS."""
        room = self.max_text_tokens - 2
        for row in _kept(job, "texts", ("text", "held_out")):
            ids = text.encode(row["text"])
            pieces = [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]
            for part, piece in enumerate(pieces):
                end = [vocabulary.eos] if part == len(pieces) - 1 else []
                parts = [([vocabulary.bos, *piece, *end], "text", 1.0)]
                yield self._sample((row["key"],), _digest(row["key"]), part, parts, row["label"], vocabulary)

    def _sample(
        self,
        parents: tuple[bytes, ...],
        place: bytes,
        part: int,
        parts: Sequence[tuple[list[int], str, float]],
        label: str,
        vocabulary: Vocabulary,
    ) -> Sample:
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in parts])
        weights = np.concatenate([np.full(len(ids), weight, np.float32) for ids, _, weight in parts])
        weights[0] = 0.0
        spent = flops.causal_cost(self.trunk, vocabulary.size, [len(tokens)], int(np.count_nonzero(weights)))
        kinds = {kind for _, kind, _ in parts} - {"text"}
        return Sample(
            parents=parents,
            part=part,
            kind=kinds.pop() if kinds else "text",  # pyright: ignore[reportArgumentType]
            label=label,
            tokens=tokens,
            segments=tuple((len(ids), kind) for ids, kind, _ in parts),
            weights=weights,
            cost=spent.train,
            place=place,
        )


def _kept(job: Job, dataset: str, columns: Sequence[str]) -> Iterator[Row]:
    """Rows to train on, with key, parents and label; held-out ones are rejected."""
    for batch in job.reader(dataset).scan(["key", "parents", "label", *columns]):
        for row in batch.to_pylist():
            if row["held_out"]:
                job.reject(row["key"], row["label"], _HELD_OUT)
            else:
                yield row


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _training_order(packs: Sequence[Bin], seed: int) -> list[int]:
    """Place of each pack in training: a permutation keyed by the seed and by what the packs hold."""
    salt = seed.to_bytes(8, "big", signed=True)
    names = [_digest(salt, *(s.place + s.part.to_bytes(4, "big") for s in pack.samples)) for pack in packs]
    orders = [0] * len(packs)
    for order, pack in enumerate(sorted(range(len(packs)), key=names.__getitem__)):
        orders[pack] = order
    return orders


def _row(pack: Bin, order: int, vocabulary: Vocabulary) -> Row:
    tokens = np.concatenate([sample.tokens for sample in pack.samples])
    weights = np.concatenate([sample.weights for sample in pack.samples])
    modality = vocabulary.modality(tokens)
    segments: list[dict[str, Any]] = []
    start = 0
    for document, sample in enumerate(pack.samples):
        for length, kind in sample.segments:
            segments.append({"start": start, "len": length, "kind": kind, "document": document})
            start += length
    return {
        "tokens": tokens.tolist(),
        "loss_weights": weights.tolist(),
        "segments": segments,
        "num_tokens": len(tokens),
        "num_text_tokens": int((modality == TEXT).sum()),
        "num_vision_tokens": int((modality == VISION).sum()),
        "loss_weight": float(weights.sum(dtype=np.float64)),
        "flops": pack.cost,
        "order": order,
        "vocabulary": vocabulary.to_json(),
        "parents": list(dict.fromkeys(parent for sample in pack.samples for parent in sample.parents)),
        "label": f"pack {order}",
    }
