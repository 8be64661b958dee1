"""How many actors each stage may have now: a pure function of what the stages ask for and what the machines have.

The rule, in this order:
    1. every stage with work gets one actor, those that ask for GPUs or custom resources first;
    2. those that ask for GPUs or custom resources get all that they can use: a CPU stage never starves them,
       however much work it has;
    3. what is left goes round among the others, always to the one with the smallest share of what it can use.
Among equals the later stage of the pipeline comes first, so that rows leave before new ones enter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What one actor asks of its node."""

    cpus: float = 1.0
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    """Custom resources of the cluster, by name, in order of name."""

    def needs(self) -> dict[str, float]:
        """Amount by Ray's name of the resource."""
        found = {"CPU": self.cpus, "GPU": self.gpus, **dict(self.resources)}
        return {name: amount for name, amount in found.items() if amount > 0}

    @property
    def is_scarce(self) -> bool:
        """Whether it asks for more than CPUs."""
        return self.gpus > 0 or bool(self.resources)

    def __str__(self) -> str:
        return " and ".join(f"{amount:g} {name}" for name, amount in self.needs().items()) or "nothing"


@dataclass(frozen=True)
class Demand:
    """What one stage could use now."""

    size: Size
    least: int
    """Actors that it keeps while it has any work, even if it has fewer tasks."""
    most: int
    """Actors that it never exceeds."""
    backlog: int
    """Tasks that wait or run."""
    rank: int = 0
    """Place in the pipeline; later ones come first."""

    @property
    def wanted(self) -> int:
        """Actors that it can use: as many as tasks, between least and most."""
        return min(self.most, max(self.least, self.backlog)) if self.backlog else 0


def allot(demands: Sequence[Demand], capacity: Mapping[str, float]) -> list[int]:
    """Actors per demand, in order of the demands; never more than wanted, nor together more than the capacity."""
    left = dict(capacity)
    given = [0] * len(demands)

    def give(i: int) -> bool:
        needs = demands[i].size.needs()
        if given[i] >= demands[i].wanted or any(left.get(name, 0) < need - 1e-9 for name, need in needs.items()):
            return False
        for name, need in needs.items():
            left[name] -= need
        given[i] += 1
        return True

    order = sorted(range(len(demands)), key=lambda i: (not demands[i].size.is_scarce, -demands[i].rank))
    for i in order:
        give(i)
    for i in order:
        while demands[i].size.is_scarce and give(i):
            pass
    others = [i for i in order if not demands[i].size.is_scarce]
    while any(give(i) for i in sorted(others, key=lambda i: (given[i] / max(1, demands[i].wanted), others.index(i)))):
        pass
    return given
