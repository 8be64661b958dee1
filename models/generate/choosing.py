"""How a token is chosen among logits. Legend: B rows, V ids.

Every row has a generator of its own, so that what is drawn for a prompt does not depend on what is drawn beside it:
uniform numbers on the CPU, whatever the device of the model, turned into ids by the inverse of the distribution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_BYTES = 2**26
"""Of probabilities in double precision that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw."""

    temperature: float = 1.0
    """0 takes the most likely."""
    top_k: int = 0
    """Ids that compete; 0: all."""
    top_p: float = 1.0
    """The likeliest ids that have this share of the probability together compete, after `top_k` (arXiv 1904.09751)."""
    guidance: float = 1.0
    """u + guidance * (c - u) of logits, or of noise: c with the prompt, u with the negative one; 1: none."""
    steps: int = 50
    """Of drawing latents out of noise (Transfusion: 250)."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.steps < 1:
            raise ValueError(
                f"temperature {self.temperature}, top-k {self.top_k}, top-p {self.top_p} and {self.steps} steps are not"
                " all possible: give 0 or more, 0 or more, above 0 to 1, and 1 or more"
            )


class Chance:
    """The random numbers of every row, each from its own seed."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def of(self, rows: Sequence[int]) -> Chance:
        """Of some of the rows; what they draw, they draw from the same generators."""
        some = Chance(())
        some.generators = [self.generators[row] for row in rows]
        return some

    def uniform(self, count: int) -> Tensor:
        """(B, count) in [0, 1), float64."""
        return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) of mean 0 and deviation 1, float32."""
        return torch.stack([torch.randn(*shape, generator=generator) for generator in self.generators])


def last(steps: Iterable[Tensor]) -> Tensor:
    """What a drawing comes to."""
    return deque(steps, maxlen=1)[0]


def narrowed(logits_BV: Tensor, how: Sampling) -> Tensor:
    """(B, V) over the temperature, -inf where an id does not compete; temperature, then top-k, then top-p, as in
    transformers. Ids that are as likely as the last of the top k compete too."""
    logits_BV = logits_BV / how.temperature
    if 0 < how.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(how.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if how.top_p < 1:
        ordered_BV, order_BV = logits_BV.sort(dim=-1)
        out_BV = ordered_BV.softmax(-1).cumsum(-1) <= 1 - how.top_p
        out_BV[:, -1] = False
        logits_BV = logits_BV.masked_fill(out_BV.scatter(-1, order_BV, out_BV), float("-inf"))
    return logits_BV


def chosen(logits: Tensor, how: Sampling, uniform: Tensor) -> Tensor:
    """(B, ...) ids after logits (B, ..., V), by one number in [0, 1) for each, (B, ...)."""
    if how.temperature == 0:
        return logits.argmax(-1)
    flat_NV, uniform_N = logits.flatten(0, -2), uniform.to(logits.device).flatten()
    rows = max(1, _CHUNK_BYTES // (8 * flat_NV.shape[-1]))
    parts = [
        _inverse(narrowed(some_NV.float(), how), some_N)
        for some_NV, some_N in zip(flat_NV.split(rows), uniform_N.split(rows), strict=True)
    ]
    return torch.cat(parts).view(logits.shape[:-1])


def _inverse(logits_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first id whose cumulated probability is above the number; of probability 0 none is."""
    cumulated_NV = logits_NV.double().softmax(-1).cumsum(-1)
    whole_N1 = cumulated_NV[:, -1:]
    below_N1 = torch.nextafter(whole_N1, torch.zeros_like(whole_N1))
    aimed_N1 = torch.minimum(uniform_N.double()[:, None] * whole_N1, below_N1)
    return torch.searchsorted(cumulated_NV, aimed_N1, right=True)[:, 0]
