"""Tasks, and what becomes of one whose actor died or hung: tried again, halved, down to the row that is to blame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infra.types import RunError

DEATHS_BEFORE_HALVING = 2
DEATHS_BEFORE_BLAME = 3
"""Times that a row must kill its worker while it is alone there: any process may die once by bad luck."""
DEATHS_BEFORE_GIVING_UP = 8
KILLED = "it killed its worker process each time it was tried"
TOO_LATE = "it ran past the deadline each time it was tried"


@dataclass(frozen=True)
class Task:
    """A shard, or a part of one while a guilty row is sought."""

    shard: int
    units: tuple[Any, ...]
    is_whole: bool = True
    """Whether these are all units of the shard."""
    deaths: int = 0
    suspect: bool = False
    """Whether the units are isolated because one of them killed or hung an actor."""
    blame: str | None = None
    """Set on a single unit that did it again: it is not processed any more, only written down."""


@dataclass
class Shard:
    """The parts of a shard that are still out, and the results of the others."""

    open_parts: int = 1
    results: list[dict[str, Any]] = field(default_factory=list)

    def ends_with(self, result: dict[str, Any]) -> bool:
        """Take the result of one part; whether it was the last one."""
        self.results.append(result)
        self.open_parts -= 1
        return self.open_parts == 0


def after_death(task: Task, blame: str = KILLED) -> Iterator[Task]:
    """The same again; then halves; a single unit that did it alone, time after time, is blamed."""
    deaths = task.deaths + 1
    if task.blame:
        if deaths >= DEATHS_BEFORE_GIVING_UP:
            raise RunError("a worker died while it wrote a quarantined row: look at the machine's memory and disk")
        yield replace(task, deaths=deaths)
    elif len(task.units) > 1:
        middle = len(task.units) // 2
        if not task.suspect and deaths < DEATHS_BEFORE_HALVING:
            yield replace(task, deaths=deaths)
            return
        for units in (task.units[:middle], task.units[middle:]):
            yield Task(task.shard, units, is_whole=False, suspect=True)
    else:
        enough = deaths >= (DEATHS_BEFORE_BLAME if blame == KILLED else DEATHS_BEFORE_HALVING)
        yield replace(task, deaths=deaths, suspect=True, blame=blame if enough else None)


def after_hang(task: Task, positions: Sequence[int]) -> Iterator[Task]:
    """The batch that hung is isolated row by row; the others go on without it."""
    hung = {task.units[p] for p in positions}
    if len(task.units) == 1:
        deaths = task.deaths + 1
        blame = TOO_LATE if deaths >= DEATHS_BEFORE_HALVING else None
        yield replace(task, deaths=deaths, suspect=True, blame=blame)
        return
    others = tuple(u for u in task.units if u not in hung)
    if others:
        yield replace(task, units=others, is_whole=False)
    for unit in task.units:
        if unit in hung:
            yield Task(task.shard, (unit,), is_whole=False, suspect=True)
