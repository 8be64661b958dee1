"""What the ranks of a training do together at every step: add up, say who is at fault, give up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

if TYPE_CHECKING:
    from stages.workers.pulse import Pulse
    from stages.workers.saver import Saver

_NAMED = 3
"""Of those at fault so many are named."""


@dataclass(frozen=True)
class Sums:
    """What all ranks have added up of a step; the same on every one, so that all act alike on it."""

    told: list[float]
    """What each rank gave."""
    stops: float
    """Ranks that wish to stop."""
    saves_ended: float
    """Ranks whose files of the save under way are uploaded."""


def sum_over_ranks(values: ArrayLike, device: torch.device) -> Tensor:
    """In double precision."""
    total = torch.tensor(np.asarray(values), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total


def add_up(told: ArrayLike, pulse: Pulse, saver: Saver, device: torch.device) -> Sums:
    """One sum over ranks of all that is to be known of a step: what it told, wishes to stop, ended saves."""
    pulse.at(pulse.step, "exchanging")
    found: list[float] = sum_over_ranks([*np.asarray(told), pulse.wish(), saver.ended()], device).tolist()
    return Sums(found[:-2], *found[-2:])


def at_fault(own: Mapping[tuple[int, ...], str], num_all: int, everywhere: str, nowhere: str) -> str:
    """Who made a step's loss infinite or no number, in words: a collective call.

    `own` words what this rank found, by its place in the step; ranks that share a place say it once. Where all
    `num_all` places are at fault it is `everywhere`, where none is `nowhere`.
    """
    found: list[Mapping[tuple[int, ...], str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    named = {place: words for part in reversed(found) for place, words in part.items()}
    if len(named) == num_all:
        return everywhere
    return "; ".join(words for _, words in sorted(named.items())[:_NAMED]) or nowhere


def give_up(sink: Any, saver: Saver, sentence: str) -> None:
    """Tell the driver why; a collective call. What was saved before the trouble is worth its end."""
    if saver.busy:
        saver.finish()
    if dist.get_rank() == 0:
        import ray

        ray.get(sink.blame.remote(sentence))
    dist.barrier()
