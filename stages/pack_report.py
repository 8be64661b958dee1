"""What a pack holds, and how even packs are: in numbers beside the two usual ways, and as a picture. Not a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models import flops
from models.flops import TrunkShape
from models.vocabulary import Vocabulary
from stages import frames

_STRIPS = 48
"""Packs in the picture."""
_STRIP_PIXELS = 768
_COLOURS = {"text": (92, 122, 171), "image": (221, 143, 66), "video": (96, 160, 94)}
_OPEN_BINS = 8
"""Packs that are open at once when packs are filled to a fixed length."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document: what is never cut and never attends to another."""

    parents: tuple[bytes, ...]
    part: int
    kind: Literal["text", "image", "video"]
    label: str
    tokens: NDArray[np.int32]
    segments: tuple[tuple[int, str], ...]
    """Lengths and kinds, in order."""
    weights: NDArray[np.float32]
    """Loss weight of each token as a target; 0 for the first."""
    cost: float
    """Training FLOPs."""
    place: bytes
    """H(member key): decides group and order."""


@dataclass
class Bin:
    """An open pack."""

    samples: list[Sample] = field(default_factory=list)
    tokens: int = 0
    cost: float = 0.0

    def add(self, sample: Sample) -> None:
        """Put a sample at the end."""
        self.samples.append(sample)
        self.tokens += len(sample.tokens)
        self.cost += sample.cost


def evenness(
    packs: Sequence[Bin], samples: Sequence[Sample], flops_per_pack: float, trunk: TrunkShape, vocabulary: Vocabulary
) -> dict[str, float]:
    """How even the packs are, beside the two ways everyone else packs (model-recipes 2.5)."""
    costs = np.array([pack.cost for pack in packs])
    lengths = [len(sample.tokens) for sample in samples]
    padded, padded_share = _pad_to_longest(trunk, lengths, max(1, round(len(samples) / len(packs))), vocabulary)
    fixed = _fixed_length(samples, max(*lengths, round(sum(lengths) / len(packs))))
    return {
        "num_packs": len(packs),
        "num_samples": len(samples),
        "num_tokens": sum(lengths),
        "dropped": len(samples) - sum(len(pack.samples) for pack in packs),
        "padding_fraction": 0.0,
        "fill": float(costs.mean() / flops_per_pack),
        "imbalance": float(costs.max() / costs.mean()),
        "pad_to_longest/padding_fraction": padded_share,
        "pad_to_longest/imbalance": float(padded.max() / padded.mean()),
        "fixed_length/imbalance": float(fixed.max() / fixed.mean()),
    }


def _pad_to_longest(
    trunk: TrunkShape, lengths: Sequence[int], batch: int, vocabulary: Vocabulary
) -> tuple[NDArray[np.float64], float]:
    """Cost of each batch of neighbours padded to its longest sample, and the share of padding."""
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    sizes = [max(group) for group in groups]
    costs = [
        flops.causal_cost(trunk, vocabulary.size, [size] * len(group), sum(group)).train
        for size, group in zip(sizes, groups, strict=True)
    ]
    allocated = sum(size * len(group) for size, group in zip(sizes, groups, strict=True))
    return np.array(costs), 1 - sum(lengths) / allocated


def _fixed_length(samples: Sequence[Sample], room: int) -> NDArray[np.float64]:
    """Cost of packs filled first-fit to `room` tokens, whatever they cost."""
    filled: list[int] = []
    costs: list[float] = []
    for sample in samples:
        recent = range(max(0, len(filled) - _OPEN_BINS), len(filled))
        home = next((pack for pack in recent if filled[pack] + len(sample.tokens) <= room), len(filled))
        if home == len(filled):
            filled.append(0)
            costs.append(0.0)
        filled[home] += len(sample.tokens)
        costs[home] += sample.cost
    return np.array(costs)


def strips(packs: Sequence[Bin], max_tokens: int) -> bytes:
    """The first packs as strips, one sample a block, coloured by kind; right end: the longest pack."""
    shown = packs[:_STRIPS]
    longest = min(max_tokens, max(pack.tokens for pack in shown))
    sheet = np.full((len(shown) * 8, _STRIP_PIXELS, 3), 255, np.uint8)
    for row, pack in enumerate(shown):
        end = 0
        for sample in pack.samples:
            start, end = end, end + len(sample.tokens)
            left, right = (edge * _STRIP_PIXELS // longest for edge in (start, end))
            sheet[row * 8 : row * 8 + 7, left : max(right - 1, left + 1)] = _COLOURS[sample.kind]
    return frames.to_png(sheet)
