"""Pack samples into sequences of about equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from infra.types import UserError
from models.flops import TrunkShape
from models.layout import KINDS, Document, Format, Layout
from models.places import tokens_of
from models.tokenizers.shapes import plain
from models.vocabulary import TEXT, VISION
from stages import pack_report
from stages.base import Edge, Job, JobStage, Row, above_zero
from stages.pack_documents import MIXED, TASKS, Samples
from stages.pack_format import format_of
from stages.pack_samples import Corpus
from stages.packing import Budget, Plan, measures, plan, training_order

_GROUPS_AT_ONCE = 8
"""Groups whose rows are read together."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training: which samples, and how large packs are."""

    size: int | None = None
    """Only pictures of this `indices.size`; unset: of every size."""
    video: bool = True
    """Whether films are in."""
    flops_per_pack: float | None = None
    max_tokens: int | None = None
    """Unset: those of the stage."""


@dataclass(frozen=True, kw_only=True)
class Packs(JobStage):
    """Sequences of about equal cost in the recipe's layout, and their order in training.

    A sample is a caption with what was extracted of its clip, in one of both orders, or a plain text, cut into pieces
    where it is longer than `max_text_tokens`. Nothing is dropped, and pictures are never cut. Samples are sorted by
    H(member keys) and cut into groups where it is 0 mod `group_one_in`; packs are made inside a group
    (stages/packing.py), which bounds memory and lets a new sample change one group only. A pack holds at most
    `flops_per_pack` training FLOPs and `max_tokens`. Packs are not padded: the trainer runs ragged documents. The
    `step_packs` packs of a step cost about the same, so any number of ranks that divides it is balanced.

    Rejects held-out rows, captions without indices, indices without a caption, texts without a share.
    """

    writes: ClassVar[str] = "packs"
    revision: ClassVar[int] = 2
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("captions", columns=("text", "held_out")),
        Edge("indices", columns=("grids", "ids", "codebook_size", "tokenizer", "held_out")),
        Edge("texts", columns=("text", "held_out")),
        Edge("text_tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("tokens", pa.list_(pa.int32())),
            pa.field("shown", pa.list_(pa.int32()), nullable=True),
            ("loss_weights", pa.list_(pa.float32())),
            (
                "segments",
                pa.list_(
                    pa.struct(
                        [("len", pa.int32()), ("kind", pa.int8()), ("document", pa.int32()), ("rows", pa.int32()),
                         ("columns", pa.int32()), ("scale", pa.int32()), ("num_scales", pa.int32())]
                    )
                ),
            ),
            pa.field("latents", pa.large_binary(), nullable=True),
            pa.field("features", pa.large_binary(), nullable=True),
            ("num_tokens", pa.int32()),
            ("num_places", pa.int32()),
            ("num_text_tokens", pa.int32()),
            ("num_vision_tokens", pa.int32()),
            ("num_pictures", pa.int32()),
            ("loss_weight", pa.float64()),
            ("flops", pa.float64()),
            ("order", pa.int64()),
            ("phase", pa.string()),
            ("format", pa.string()),
        ]
    )  # fmt: skip

    tasks: ClassVar[tuple[str, ...]] = TASKS[:3]

    layout: Layout
    """How a document is written, and what of it is learnt."""
    trunk: TrunkShape
    """Sizes of the model the cost is counted for; the same as `model.trunk`."""
    flops_per_pack: float
    """Budget of a pack, training FLOPs (3x forward); at least the cost of the costliest sample, or `own_lane`."""
    max_tokens: int = 4096
    """Cap on the places of a pack in the trunk: memory."""
    max_text_tokens: int = 512
    """Longer plain texts are cut into pieces of this length."""
    own_lane: bool = False
    """Samples above the budget get packs of their own, together in steps of their own; else they are an error."""
    mixture: Mapping[str, float] = field(default_factory=lambda: {"generation": 0.7, "understanding": 0.3})
    """Shares of samples that are drawn from their caption, read into it, or plain text. Pairs are divided by hash;
    pairs or texts are seen more than once where they are short, none less than once. Without `text`, every text is seen
    once; a share of 0 leaves texts out."""
    sources: Mapping[str, float] = field(default_factory=dict)
    """How often samples of files are seen, by the beginning of their name; 1 where none fits."""
    caption_drop: float = 0.0
    """Share of drawn pictures without their caption, for guidance (Emu3: 0.05, TokenFlow: 0.1)."""
    phases: Mapping[str, Phase] = field(default_factory=dict)
    """Stretches of training, one after the other; empty: one."""
    vocabulary: Literal["compact", "emu3"] = "compact"
    """Ids without gaps, or those of the published Emu3."""
    step_packs: int = 4
    """Packs of a step; the same as `model.global_batch`."""
    group_one_in: int = 1024
    """Mean number of samples in a group."""
    seed: int = 0
    """Of the order in training."""

    def __post_init__(self) -> None:
        above_zero(self, "flops_per_pack", "max_tokens", "max_text_tokens", "step_packs", "group_one_in")
        strange = sorted(set(self.mixture) - set(self.tasks))
        if strange:
            raise UserError(f"packs.mixture has {strange[0]}: its tasks are {', '.join(self.tasks)}")
        if any(share < 0 for share in self.mixture.values()):
            raise UserError(f"packs.mixture is {dict(self.mixture)}: give shares of 0 or more")

    def settings(self) -> dict[str, Any]:
        """Phases as a list: a mapping's order is in no key, and theirs is that of training."""
        said = super().settings() | {"layout": plain(self.layout)}
        return said | {"phases": list(self.phases.items())} if self.phases else said

    def all_phases(self) -> dict[str, Phase]:
        """By name, in order."""
        return dict(self.phases) or {"all": Phase()}

    def budget(self, phase: Phase) -> Budget:
        """Of a pack of a phase."""
        return Budget(
            flops=phase.flops_per_pack or self.flops_per_pack,
            max_tokens=phase.max_tokens or self.max_tokens,
            group_one_in=self.group_one_in,
        )

    def run(self, job: Job) -> Iterator[Row]:
        """Find the samples, plan their packs, order them, report; then write group after group."""
        from models.tokenizers.text import load_text_tokenizer

        text = load_text_tokenizer(job.checkpoint("text_tokenizer"))
        form = format_of(self, job, text)
        corpus = Corpus(job, self, form, text)
        first = 0
        strips: list[pack_report.Strip] = []
        for name, samples in corpus.samples().items():
            if not len(samples):
                continue
            budget = self.budget(self.all_phases()[name])
            places, costs, tokens = samples.keys(), np.asarray(samples.costs), np.asarray(samples.tokens)
            planned = plan(places, costs, tokens, budget)
            self._check(planned, samples, budget, corpus)
            of_pack = planned.sums(costs).astype(np.float64)
            orders, ordered = training_order(planned, places, of_pack, self.seed, self.step_packs)
            prefix = f"{name}/" if self.phases else ""
            report = ordered | measures(
                planned,
                costs,
                tokens,
                budget,
                places=places,
                orders=orders,
                global_batch=self.step_packs,
                trunk=self.trunk,
            )
            job.summary({f"{prefix}{key}": float(value) for key, value in report.items()})
            for number, row in self._rows(job, corpus, samples, planned):
                row |= {"order": first + int(orders[number]), "phase": name, "format": form.to_json()}
                row |= {"flops": float(of_pack[number]), "label": f"pack {row['order']}"}
                strips = pack_report.with_strip(strips, row)
                yield row
            first += len(planned.packs)
        if strips:
            job.picture("packs", pack_report.strips(strips))

    def _rows(self, job: Job, corpus: Corpus, samples: Samples, planned: Plan) -> Iterator[tuple[int, Row]]:
        """Packs and their numbers; the rows of a few groups are in memory at a time."""
        numbers = np.argsort(planned.groups, kind="stable")
        edges = np.flatnonzero(np.diff(planned.groups[numbers], prepend=-1))
        chunks = np.split(numbers, edges[_GROUPS_AT_ONCE::_GROUPS_AT_ONCE])
        done = 0
        for chunk in chunks:
            documents = corpus.writer.documents(samples, [int(n) for pack in chunk for n in planned.packs[pack]])
            for number in chunk.tolist():
                yield number, _row([documents[int(n)] for n in planned.packs[number]], corpus.form)
                done += 1
            job.progress(done, len(planned.packs), "packs written")

    def _check(self, planned: Plan, samples: Samples, budget: Budget, corpus: Corpus) -> None:
        """Both caps must hold the largest sample, unless it may have a lane of its own."""
        if self.own_lane or not planned.lone.any():
            return
        costly, longest = int(np.argmax(samples.costs)), int(np.argmax(samples.tokens))
        if samples.costs[costly] > budget.flops:
            ((_, _, label),) = corpus.writer.documents(samples, [costly]).values()
            raise UserError(
                f"packs.flops_per_pack is {budget.flops:.6g}, but the costliest sample ({label},"
                f" {samples.tokens[costly]} tokens) needs {samples.costs[costly]:.6g};"
                f" set packs.flops_per_pack={np.ceil(samples.costs[costly]):.0f} or more, or packs.own_lane=true"
            )
        ((_, _, label),) = corpus.writer.documents(samples, [longest]).values()
        raise UserError(
            f"packs.max_tokens is {budget.max_tokens}, but the longest sample ({label}) has"
            f" {samples.tokens[longest]} tokens; set packs.max_tokens={samples.tokens[longest]} or more, or"
            " packs.own_lane=true"
        )


@dataclass(frozen=True, kw_only=True)
class MixedPacks(Packs):
    """As `packs`, with documents of several pictures and the texts between them (NextFlow's interleaved data)."""

    inputs: ClassVar[tuple[Edge, ...]] = (*Packs.inputs, Edge(MIXED, columns=("pictures", "texts", "held_out")))
    tasks: ClassVar[tuple[str, ...]] = TASKS


def _row(packed: list[tuple[Document, list[bytes], str]], form: Format) -> Row:
    """One pack, without its place in the order."""
    said = tokens_of([document for document, _, _ in packed])
    modality = form.vocabulary.modality(said.tokens)
    columns = np.stack(list(said.segments.values()), 1).tolist()
    segments = [dict(zip(said.segments, row, strict=True)) for row in columns]
    latents = [part for document, _, _ in packed for part in document.latents]
    features = [part for document, _, _ in packed for part in document.features]
    first_codes = sum(s["kind"] == KINDS.index("scale") and not s["scale"] for s in segments)
    return {
        "tokens": said.tokens.tolist(),
        "shown": None if np.array_equal(said.tokens, said.shown) else said.shown.tolist(),
        "loss_weights": said.weights.tolist(),
        "segments": segments,
        "latents": np.concatenate(latents).astype("<f2").tobytes() if latents else None,
        "features": np.concatenate(features).astype("<f2").tobytes() if features else None,
        "num_tokens": len(said.tokens),
        "num_places": len(said.tokens) - first_codes,
        "num_text_tokens": int((modality == TEXT).sum()),
        "num_vision_tokens": int((modality == VISION).sum()) + sum(len(part) for part in latents),
        "num_pictures": len(latents),
        "loss_weight": float(said.weights.sum(dtype=np.float64)),
        "parents": list(dict.fromkeys(parent for _, parents, _ in packed for parent in parents)),
    }
