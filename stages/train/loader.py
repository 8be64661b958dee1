"""Which packs a step reads: a pure function of seed, step and rank, so that the data's whole state is one integer.

The stream is the packs in their training order, then (every later epoch) a permutation keyed by seed and epoch. Step s
reads places s*B .. s*B+B-1 of the stream, rank r those that are r mod the world size: whatever the world size,
a step sees the same packs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import Vocabulary
from stages.base import Reader

COLUMNS = ("tokens", "loss_weights", "segments")
_ROUNDS = 4


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
class Ragged:
    """Packs of one rank and step, joined end to end, T tokens in all."""

    tokens: NDArray[np.int64]
    """(T)."""
    lengths: list[int]
    """Tokens of each document."""
    targets: NDArray[np.int64]
    """(T) the token after each."""
    weights: NDArray[np.float32]
    """(T) loss weight of each target; 0 where the next token begins another document."""


class Loader:
    """Packs of a pinned snapshot by step."""

    def __init__(self, reader: Reader, global_batch: int, seed: int) -> None:
        orders = np.concatenate([batch.column(0).to_numpy() for batch in reader.scan(["order"])])
        self._reader, self.global_batch, self.seed = reader, global_batch, seed
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

    def batch(self, step: int, rank: int, world: int) -> Ragged:
        """What a rank computes at a step."""
        table = self._reader.take(self.rows(step)[rank::world], COLUMNS)
        return ragged(table.to_batches())


def ragged(batches: list) -> Ragged:
    """Join packs; document boundaries come from the segments."""
    tokens, weights, lengths = [], [], []
    for batch in batches:
        for pack in range(batch.num_rows):
            tokens.append(batch.column("tokens")[pack].values.to_numpy().astype(np.int64))
            weights.append(batch.column("loss_weights")[pack].values.to_numpy())
            segments = batch.column("segments")[pack].values
            documents, sizes = segments.field("document").to_numpy(), segments.field("len").to_numpy()
            lengths.extend(np.bincount(documents, sizes).astype(int).tolist())
    joined, weight = np.concatenate(tokens), np.concatenate(weights)
    return Ragged(
        tokens=joined,
        lengths=lengths,
        targets=np.roll(joined, -1),
        weights=np.append(weight[1:], np.float32(0)),
    )


def sums_by_modality(
    nll: NDArray[np.float64], targets: NDArray[np.int64], weights: NDArray[np.float32], vocabulary: Vocabulary
) -> Iterator[float]:
    """Sum of nats and number of supervised tokens: of text, of special tokens, of vision (six numbers)."""
    kinds = vocabulary.modality(targets)
    for kind in range(3):
        chosen = (kinds == kind) & (weights > 0)
        yield float(nll[chosen].sum())
        yield float(chosen.sum())
