"""What a rank computes at a step: the packs of the stream (stages/train/stream.py), joined, as tensors.

Rank r reads the packs of a step that are r mod the world size: whatever the world size, a step sees the same packs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from infra.types import UserError
from models.batch import Batch, batch_of, drawn_noise
from models.layout import KINDS, Format
from models.places import SEGMENT_FIELDS, Places, Tokens, places
from models.recipe import Parts
from models.vocabulary import Vocabulary
from stages.base import Reader, Row
from stages.train.stream import Stream

COLUMNS = ("tokens", "shown", "loss_weights", "segments", "latents", "features", "flops")
MAX_SCALES = 1024
"""Or passes: of the longest published schedule, each grid in 64, 844."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Packs of one rank and step, or of one pass of it, end to end."""

    places: Places
    weight: float
    """Sum of the loss weights of what is predicted."""
    num_pictures: int
    """Pictures of latents."""
    flops: float
    """Training FLOPs, as the packer counts them."""
    latents: NDArray[np.float16] | None
    """(P, C)."""
    features: NDArray[np.float16] | None
    """(Q, F)."""
    packs: list[int]
    """Of each document, which of the rank's packs of the step it stands in."""
    origins: list[tuple[int, int]]
    """Of each picture of latents: the pack's place in the stream, and its number in the pack."""

    def batch(self, form: Format, parts: Parts, seed: int, device: torch.device | str = "cpu") -> Batch:
        """Tensors, with the noise of each picture: a function of the seed and of where it stands in the stream."""
        seeds = [(seed, *origin) for origin in self.origins]
        noise, steps = drawn_noise(self.places, form.latent_size, parts, seeds)
        vectors = {"latents_PC": self.latents, "features_QF": self.features}
        return batch_of(self.places, form, parts, device, noise_PC=noise, step_P=steps, **vectors)


class Loader:
    """Packs of a pinned snapshot by step."""

    def __init__(
        self,
        reader: Reader,
        global_batch: int,
        seed: int,
        form: Format,
        parts: Parts,
        phases: Mapping[str, int] | None = None,
    ) -> None:
        self.stream = Stream(reader, global_batch, seed, phases)
        self._reader, self.global_batch, self.seed = reader, global_batch, seed
        self.form, self.parts = form, parts

    def rows(self, step: int) -> list[int]:
        """Positions in the snapshot of the packs of a step."""
        return self.stream.rows(step)

    def described(self, step: int, rank: int, world: int, pack: int) -> str:
        """One pack of a rank at a step, with the rows it was made of, for people."""
        return described(self._reader, [self.rows(step)[rank::world][pack]])

    def passes(self, step: int, rank: int, world: int, packs_per_pass: int | None = None) -> list[Joined]:
        """What a rank computes at a step, cut into passes of at most so many packs (None: one pass).

        Every rank has equally many packs, so equally many passes. A picture's noise comes from its place in the stream,
        so that it is the same however passes are cut.
        """
        table = self._reader.take(self.rows(step)[rank::world], COLUMNS)
        stream = range(step * self.global_batch + rank, (step + 1) * self.global_batch, world)
        each = packs_per_pass or table.num_rows
        found = [
            joined(table.slice(first, each), self.form, self.parts.span, stream[first : first + each], first)
            for first in range(0, table.num_rows, each)
        ]
        most = max(int(made.places.scales[:, 1].max(initial=0)) for made in found)
        if self.parts.scale_embeddings and most > self.parts.max_scales:
            raise UserError(
                f"a picture is said in {most} grids or passes of grids, and model.parts.max_scales is"
                f" {self.parts.max_scales}: give {most} or more"
            )
        return found


def described(packs: Reader, rows: Sequence[int]) -> str:
    """The packs at these positions of the snapshot, each with the rows it was made of, for people."""
    told: list[str] = []
    for one in packs.take(rows, ["key", "parents", "label"]).to_pylist():
        first = ", ".join(parent.hex()[:12] for parent in one["parents"][:4])
        told.append(
            f"{one['label']} ({one['key'].hex()[:12]}) of {len(one['parents'])} rows ({first} ...:"
            f" plait why --row {one['parents'][0].hex()[:12]})"
        )
    return "; ".join(told)


def joined(table: pa.Table, form: Format, span: float, stream: Sequence[int], first_pack: int = 0) -> Joined:
    """Packs (rows of `packs`, at these places of the stream) end to end; `first_pack`: number of the first of them."""
    packs = table.to_pylist()
    made = places(tokens_of(packs), span=span, interleave=form.layout.interleave)
    origins = [(place, n) for place, pack in zip(stream, packs, strict=True) for n in range(_num_pictures(pack))]
    return Joined(
        places=made,
        weight=float(made.weights.sum(dtype=np.float64)),
        num_pictures=len(made.latent_grids),
        flops=sum(pack["flops"] for pack in packs),
        latents=_vectors([pack["latents"] for pack in packs], form.latent_size),
        features=_vectors([pack["features"] for pack in packs], form.feature_size),
        packs=[n for n, pack in enumerate(packs, first_pack) for _ in range(pack["segments"][-1]["document"] + 1)],
        origins=origins,
    )


def guilty_packs(made: Joined, nll_T: NDArray[np.floating], squared_N: NDArray[np.floating]) -> list[int]:
    """Packs with a document whose likelihoods, loss weights, or pictures' errors are not finite."""
    document_T = np.repeat(np.arange(len(made.places.lengths)), made.places.lengths)
    strange = {made.packs[d] for d in np.unique(document_T[~(np.isfinite(nll_T) & np.isfinite(made.places.weights))])}
    first_P = np.unique(made.places.pictures, return_index=True)[1]
    of_picture = document_T[made.places.latent_at[first_P]] if len(first_P) else first_P
    return sorted(strange | {made.packs[d] for d in of_picture[~np.isfinite(squared_N)]})


def tokens_of(packs: Sequence[Row]) -> Tokens:
    """Packs as they are stored, end to end; documents are numbered through."""
    segments: dict[str, NDArray[Any]] = {}
    columns = [{name: np.array([s[name] for s in pack["segments"]]) for name in SEGMENT_FIELDS} for pack in packs]
    first = 0
    for of_pack in columns:
        of_pack["document"] = of_pack["document"] + first
        first = int(of_pack["document"][-1]) + 1
    for name in SEGMENT_FIELDS:
        segments[name] = np.concatenate([of_pack[name] for of_pack in columns]).astype(np.int64)
    tokens = [np.asarray(pack["tokens"], np.int64) for pack in packs]
    shown = [own if pack["shown"] is None else np.asarray(pack["shown"], np.int64)
             for pack, own in zip(packs, tokens, strict=True)]  # fmt: skip
    weights = [np.asarray(pack["loss_weights"], np.float32) for pack in packs]
    return Tokens(
        tokens=np.concatenate(tokens),
        shown=np.concatenate(shown),
        weights=np.concatenate(weights),
        segments=segments,
    )


def _num_pictures(pack: Row) -> int:
    return sum(segment["kind"] == KINDS.index("latents") for segment in pack["segments"])


def _vectors(parts: Sequence[bytes | None], size: int) -> NDArray[np.float16] | None:
    found = b"".join(part for part in parts if part is not None)
    return np.frombuffer(found, "<f2").reshape(-1, size) if found else None


def sums_by_scale(nll_T: NDArray[np.float64], made: Places) -> list[float]:
    """Sum of nats and number of supervised codes, of each scale that has places (2 x `MAX_SCALES` numbers)."""
    found = np.zeros((MAX_SCALES, 2))
    learnt = made.weights[made.scale_at] > 0
    np.add.at(found, made.scales[learnt, 0], np.stack([nll_T[made.scale_at[learnt]], np.ones(learnt.sum())], 1))
    return found.ravel().tolist()


def sums_by_modality(
    nll: NDArray[np.float64], targets: NDArray[np.int64], weights: NDArray[np.float32], vocabulary: Vocabulary
) -> Iterator[float]:
    """Sum of nats and number of supervised tokens: of text, of special tokens, of vision (six numbers)."""
    kinds = vocabulary.modality(targets)
    for kind in range(3):
        chosen = (kinds == kind) & (weights > 0)
        yield float(nll[chosen].sum())
        yield float(chosen.sum())
