"""Phases of training: settings of one run that change at a step (NextFlow's 256, 512, 1024; Emu3's films last)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.types import UserError

if TYPE_CHECKING:
    from stages.train.train import Model


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `end` - 1, which read the packs of one phase."""

    phase: str
    """Empty: the packs of all phases."""
    first: int
    end: int


def stretches(phases: Mapping[str, int], steps: int) -> list[Stretch]:
    """One after the other, those without steps left out; without phases one stretch of so many steps."""
    found: list[Stretch] = []
    for name, count in phases.items():
        first = found[-1].end if found else 0
        found += [Stretch(name, first, first + count)] if count else []
    return found or [Stretch("", 0, steps)]


def stretch_at(step: int, found: Sequence[Stretch]) -> Stretch:
    """The one that a step belongs to; the last goes on for ever."""
    return next((one for one in found if step < one.end), found[-1])


def check_phases(phases: Mapping[str, int], steps: int, rates: Mapping[str, float]) -> None:
    """Refuse steps that do not add up, and learning rates of other phases, before anything runs."""
    for name, count in phases.items():
        if count < 0:
            raise UserError(f"model.phases has {name}={count}: give steps, 0 leaves the phase out")
    total = sum(phases.values())
    if phases and total != steps:
        raise UserError(f"model.phases add up to {total} steps, model.steps is {steps}: set model.steps={total}")
    if rates and set(rates) != set(phases):
        raise UserError(
            f"model.phase_learning_rates has {', '.join(sorted(rates))}, model.phases has"
            f" {', '.join(sorted(phases)) or 'none'}: give each of these phases its rate, or none"
        )
    for name, rate in rates.items():
        if not rate > 0:
            raise UserError(f"model.phase_learning_rates.{name} is {rate}: give a number above 0")


def learning_rate(step: int, stage: Model) -> float:
    """Linear warm-up to the peak, then by the schedule to `final_learning_rate` at the end: of the whole run, or, where
    phases have rates of their own, of each phase by itself."""
    peak, stretch = stage.learning_rate, Stretch("", 0, stage.steps)
    if stage.phase_learning_rates:
        stretch = stretch_at(step, stretches(stage.phases, stage.steps))
        peak = stage.phase_learning_rates[stretch.phase]
    step -= stretch.first
    if step < stage.warmup:
        return peak * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stretch.end - stretch.first - stage.warmup)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[stage.schedule]
    return stage.final_learning_rate + (peak - stage.final_learning_rate) * share
