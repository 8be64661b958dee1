"""Keys as numbers: the digest of a set of rows, additive and independent of order, and how many keys differ."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sum_of_digests(digests: Iterable[str]) -> str:
    """The digest of all rows together: digests add up mod 2^128."""
    return f"{sum(int(d, 16) for d in digests) % (1 << 128):032x}"


def difference_of_digests(whole: str, part: str) -> str:
    """The digest of what is left of the whole without a part."""
    return f"{(int(whole, 16) - int(part, 16)) % (1 << 128):032x}"


def digest_of(keys: pa.ChunkedArray | pa.Array) -> str:
    """Sum mod 2^128 of H(key), as 32 hex digits: additive, independent of order (ARCHITECTURE, "Snapshot").

    The keys are themselves uniform hashes, so H is a fixed 64-bit mixer on both halves (splitmix64's finaliser).
    """
    words = key_words(keys)
    low, high = words[:, 0], words[:, 1]
    # the constant keeps the all-zero key from being a fixed point of the mixer
    mixed = [_mix(low ^ _mix(high + GOLDEN)), _mix(high ^ _mix(low + GOLDEN))]
    total = 0
    for shift, word in zip((0, 64), mixed, strict=True):
        parts = (word & np.uint64(0xFFFFFFFF), word >> np.uint64(32))
        total += sum(int(p.sum(dtype=np.uint64)) << (shift + 32 * i) for i, p in enumerate(parts))
    return f"{total % (1 << 128):032x}"


def key_words(keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Keys as a (N, 2) array of little-endian 64-bit words, without a Python object per key."""
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    parts = []
    for chunk in chunks:
        buffer = chunk.buffers()[1]
        if buffer is not None and len(chunk):
            words = np.frombuffer(buffer, dtype="<u8")[chunk.offset * 2 : (chunk.offset + len(chunk)) * 2]
            parts.append(words.reshape(-1, 2))
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.uint64)


def num_distinct(keys: pa.ChunkedArray | pa.Array) -> int:
    """How many different keys: sorted by one half (fast), and compared whole only where that leaves a doubt."""
    first = np.sort(key_words(keys)[:, 0])
    return len(keys.unique()) if np.any(first[1:] == first[:-1]) else len(first)


def _mix(word: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))
