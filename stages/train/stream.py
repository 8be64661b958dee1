"""Which packs a step reads: a pure function of seed and step, so that the data's whole state is one integer.

Without phases the stream is the packs in their training order, then (every later epoch) a permutation keyed by seed and
epoch; step s reads places s*B .. s*B+B-1 of it. With phases each has a stream of its own packs, from the phase's
first step on, its later epochs keyed by the phase as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.types import UserError
from stages.base import Reader
from stages.train.phases import stretch_at, stretches

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


ORDER_ROWS = 1 << 20
"""Packs whose order is read at once: few requests, for every rank reads all of them."""


class Stream:
    """Positions in the snapshot of the packs of every step."""

    def __init__(self, reader: Reader, global_batch: int, seed: int, phases: Mapping[str, int] | None = None) -> None:
        self.global_batch, self.seed = global_batch, seed
        self._stretches = stretches(phases or {}, 0)
        self._rows = _rows_of_phases(reader, phases) if phases else {"": np.argsort(_column(reader, "order"))}

    def phase(self, step: int) -> str:
        """Whose packs a step reads; empty: of all."""
        return stretch_at(step, self._stretches).phase

    def rows(self, step: int) -> list[int]:
        """Those of a step, over all ranks."""
        stretch = stretch_at(step, self._stretches)
        rows = self._rows[stretch.phase]
        first = (step - stretch.first) * self.global_batch
        return [int(rows[self._place(n, len(rows), stretch.phase)]) for n in range(first, first + self.global_batch)]

    def _place(self, number: int, size: int, phase: str) -> int:
        epoch, place = divmod(number, size)
        key = self.seed.to_bytes(8, "big", signed=True) + epoch.to_bytes(8, "big") + phase.encode()
        return permuted(place, size, key) if epoch else place


def _rows_of_phases(reader: Reader, phases: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Positions of each phase's packs, in their order; refuses other phases than the packs have."""
    in_order = np.argsort(_column(reader, "order"))
    names = _column(reader, "phase")[in_order]
    found: list[str] = list(dict.fromkeys(names.tolist()))
    if list(phases) != found:
        raise UserError(
            f"model.phases has {', '.join(phases)}, the packs have {', '.join(found)}: give each of these its steps, in"
            " this order (0 leaves one out)"
        )
    return {name: in_order[names == name] for name in found}


def _column(reader: Reader, name: str) -> NDArray[Any]:
    batches = reader.scan([name], ORDER_ROWS)
    return np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in batches])
