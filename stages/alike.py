"""Which clips look alike, by perceptual hashes of their frames and by embeddings. Plain functions over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 512
_CELLS = 48
"""Mean colours in a fingerprint: 4 x 4 cells of three channels."""


@dataclass(frozen=True)
class Look:
    """What one clip looks like."""

    key: bytes
    kind: str
    """video or image: only like is compared with like."""
    hashes: np.ndarray
    """uint64 [frames]; may be empty."""
    colours: np.ndarray
    """Mean colours of each frame's cells, int16 [frames, 48]."""
    embedding: np.ndarray | None
    """Unit vector, float32 [D]."""
    rank: tuple[float, ...]
    """What is smallest stands for the others."""


@dataclass(frozen=True)
class Bounds:
    """When two clips are alike: see `Distinct`."""

    max_bits: int
    max_colour: int
    min_share: float
    min_cosine: float


def look(
    key: bytes, kind: str, fingerprints: Sequence[bytes], embedding: Sequence[float] | None, rank: tuple[float, ...]
) -> Look:
    """From what `scores` keeps."""
    import numpy as np

    hashes = np.frombuffer(b"".join(one[:8] for one in fingerprints), ">u8").astype(np.uint64)
    colours = np.frombuffer(b"".join(one[8:] for one in fingerprints), np.uint8).astype(np.int16)
    vector = None if embedding is None else np.asarray(embedding, np.float32)
    return Look(key, kind, hashes, colours.reshape(len(fingerprints), _CELLS), vector, rank)


def representatives(looks: Sequence[Look], bounds: Bounds) -> dict[bytes, tuple[bytes, float]]:
    """For each clip that another stands for: key of that one, and how alike (share of frames, or cosine).

    Clips are taken best first (`rank`, then key), so the order in which they come does not matter. Each is compared
    with those that stand already, so likeness is never handed on along a chain. Two clips are alike when at least
    `min_share` of the frames of the one with fewer have one of the other's within `max_bits` and `max_colour`, or when
    the cosine of their embeddings is at least `min_cosine` (above 1: embeddings do not matter).
    """
    found: dict[bytes, tuple[bytes, float]] = {}
    for kind in sorted({one.kind for one in looks}):
        ordered = sorted((one for one in looks if one.kind == kind), key=lambda one: (*one.rank, one.key))
        found |= _by_hash(ordered, bounds)
        left = [one for one in ordered if one.key not in found and one.embedding is not None]
        if bounds.min_cosine <= 1:
            found |= _by_embedding(left, bounds.min_cosine)
    return {key: (_last(found, key), likeness) for key, (_, likeness) in found.items()}


def _last(found: Mapping[bytes, tuple[bytes, float]], key: bytes) -> bytes:
    """Who stands in the end: one that stood by hashes may itself be stood for by its embedding."""
    while key in found:
        key = found[key][0]
    return key


def _by_hash(ordered: Sequence[Look], bounds: Bounds) -> dict[bytes, tuple[bytes, float]]:
    import numpy as np

    if not any(len(one.hashes) for one in ordered):
        return {}
    distinct = np.unique(np.concatenate([one.hashes for one in ordered]))
    near = neighbours(distinct, bounds.max_bits)
    standing: list[list[int]] = [[] for _ in distinct]  # by distinct hash: those that stand and have it
    found: dict[bytes, tuple[bytes, float]] = {}
    for index, one in enumerate(ordered):
        places = np.unique(np.searchsorted(distinct, one.hashes))
        candidates = {other for place in places for close in near[place] for other in standing[close]}
        likeness = {other: share_of(one, ordered[other], bounds) for other in candidates}
        best = min(likeness, key=lambda other: (-likeness[other], other), default=None)
        if best is not None and likeness[best] >= bounds.min_share:
            found[one.key] = (ordered[best].key, likeness[best])
        else:
            for place in places:
                standing[place].append(index)
    return found


def _by_embedding(ordered: Sequence[Look], min_cosine: float) -> dict[bytes, tuple[bytes, float]]:
    import numpy as np

    found: dict[bytes, tuple[bytes, float]] = {}
    if not ordered:
        return found
    vectors = np.stack([one.embedding for one in ordered if one.embedding is not None])
    standing: list[int] = []
    for index, one in enumerate(ordered):
        cosines = vectors[standing] @ vectors[index] if standing else np.zeros(0)
        best = int(cosines.argmax()) if len(cosines) else -1
        if best >= 0 and cosines[best] >= min_cosine:
            found[one.key] = (ordered[standing[best]].key, float(cosines[best]))
        else:
            standing.append(index)
    return found


def neighbours(hashes: np.ndarray, max_bits: int) -> list[np.ndarray]:
    """For each hash (uint64 [N], distinct) the places of all within `max_bits`, itself included.

    All pairs are looked at: 10^5 hashes take about 10 s and 0.4 GB on one core, ten times more a hundred times that.
    """
    import numpy as np

    found: list[np.ndarray] = []
    for start in range(0, len(hashes), _CHUNK):
        bits = np.bitwise_count(hashes[start : start + _CHUNK, None] ^ hashes[None])
        found += [np.flatnonzero(row <= max_bits) for row in bits]
    return found


def share_of(one: Look, other: Look, bounds: Bounds) -> float:
    """Share of the frames of the clip with fewer that have a like frame in the other, 0 to 1."""
    import numpy as np

    few, many = sorted((one, other), key=lambda clip: len(clip.hashes))
    alike = np.bitwise_count(few.hashes[:, None] ^ many.hashes[None]) <= bounds.max_bits
    for frame, near in enumerate(alike):
        apart = np.abs(many.colours[near] - few.colours[frame]).max(axis=1)
        near[near] = apart <= bounds.max_colour
    return float(alike.any(axis=1).mean())


def nearest_pairs(looks: Sequence[Look], max_bits: int, min_cosine: float) -> Iterator[tuple[Look, Look, float]]:
    """Pairs that are each other's nearest, and how far: bits of the first hash, or 1 - cosine where both have one."""
    import numpy as np

    ordered = sorted((one for one in looks if len(one.hashes) or one.embedding is not None), key=lambda one: one.key)
    if len(ordered) < 2:
        return
    if all(one.embedding is not None for one in ordered):
        vectors = np.stack([one.embedding for one in ordered if one.embedding is not None])
        limit = 1 - min_cosine

        def far(start: int) -> np.ndarray:
            return 1 - vectors[start : start + _CHUNK] @ vectors.T
    else:
        ordered = [one for one in ordered if len(one.hashes)]
        hashes = np.array([one.hashes[0] for one in ordered], np.uint64)
        limit = float(max_bits)

        def far(start: int) -> np.ndarray:
            return np.bitwise_count(hashes[start : start + _CHUNK, None] ^ hashes[None]).astype(np.float32)

    nearest, distance = [], []
    for start in range(0, len(ordered), _CHUNK):
        part = far(start)
        part[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf
        nearest += part.argmin(axis=1).tolist()
        distance += part.min(axis=1).tolist()
    for index, other in enumerate(nearest):
        if index < other and nearest[other] == index and distance[index] <= limit:
            yield ordered[index], ordered[other], distance[index]
