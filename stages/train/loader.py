"""Which packs a step reads: a pure function of seed, step and rank, so that the data's whole state is one integer.

The stream is the packs in their training order, then (every later epoch) a permutation keyed by seed and epoch. Step s
reads places s*B .. s*B+B-1 of the stream, rank r those that are r mod the world size: whatever the world size,
a step sees the same packs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.batch import Batch, batch_of, drawn_noise
from models.layout import KINDS, Format
from models.places import SEGMENT_FIELDS, Places, Tokens, places
from models.recipe import Parts
from models.vocabulary import Vocabulary
from stages.base import Reader, Row

COLUMNS = ("tokens", "shown", "loss_weights", "segments", "latents", "features")
_ROUNDS = 4
MAX_SCALES = 32


def permuted(index: int, size: int, key: bytes) -> int:
    """Image of `index` under a permutation of range(size) given by the key: a Feistel network, walked along its
    cycle until it lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). No table."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            word = key + bytes([turn]) + right.to_bytes(8, "big")
            left, right = right, left ^ (int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "big") & mask)
        index = left << half | right
        if index < size:
            return index


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Packs of one rank and step, end to end."""

    places: Places
    weight: float
    """Sum of the loss weights of what is predicted."""
    num_pictures: int
    """Pictures of latents."""
    latents: NDArray[np.float16] | None
    """(P, C)."""
    features: NDArray[np.float16] | None
    """(Q, F)."""
    packs: list[int]
    """Of each document, which of the packs it stands in."""
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

    def __init__(self, reader: Reader, global_batch: int, seed: int, form: Format, parts: Parts) -> None:
        orders = np.concatenate([batch.column(0).to_numpy() for batch in reader.scan(["order"])])
        self._reader, self.global_batch, self.seed = reader, global_batch, seed
        self.form, self.parts = form, parts
        self._row_of_order = np.argsort(orders)

    def rows(self, step: int) -> list[int]:
        """Positions in the snapshot of the packs of a step."""
        return [self._row(place) for place in range(step * self.global_batch, (step + 1) * self.global_batch)]

    def _row(self, place: int) -> int:
        epoch, order = divmod(place, len(self._row_of_order))
        if epoch:
            key = self.seed.to_bytes(8, "big", signed=True) + epoch.to_bytes(8, "big")
            order = permuted(order, len(self._row_of_order), key)
        return int(self._row_of_order[order])

    def described(self, step: int, rank: int, world: int, pack: int) -> str:
        """One pack of a rank at a step, with the rows it was made of, for people."""
        return described(self._reader, [self.rows(step)[rank::world][pack]])

    def batch(self, step: int, rank: int, world: int) -> Joined:
        """What a rank computes at a step."""
        table = self._reader.take(self.rows(step)[rank::world], COLUMNS)
        stream = range(step * self.global_batch + rank, (step + 1) * self.global_batch, world)
        return joined(table, self.form, self.parts.span, stream)


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


def joined(table: pa.Table, form: Format, span: float, stream: Sequence[int]) -> Joined:
    """Packs (rows of `packs`, at these places of the stream) end to end."""
    packs = table.to_pylist()
    made = places(tokens_of(packs), span=span)
    origins = [(place, n) for place, pack in zip(stream, packs, strict=True) for n in range(_num_pictures(pack))]
    return Joined(
        places=made,
        weight=float(made.weights.sum(dtype=np.float64)),
        num_pictures=len(made.latent_grids),
        latents=_vectors([pack["latents"] for pack in packs], form.latent_size),
        features=_vectors([pack["features"] for pack in packs], form.feature_size),
        packs=[n for n, pack in enumerate(packs) for _ in range(pack["segments"][-1]["document"] + 1)],
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
