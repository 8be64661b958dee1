"""What every benchmark needs: timed rounds of several contestants in turn, and a table with a ratio to the peer."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def in_turn(
    contestants: Mapping[str, Callable[[int], float | None]], runs: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Run every contestant once a round, A B C A B C, so that a drift of the machine's speed hits all alike.

    A contestant gets the number of the round (the first ones are not counted). It returns its figure, or None:
    then its figure is the wall time of the call in seconds.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_ups + runs):
        for name, run in contestants.items():
            started = time.perf_counter()
            own = run(number)
            figure = time.perf_counter() - started if own is None else own
            if number >= warm_ups:
                figures[name].append(figure)
    return figures


def machine(*packages: str) -> str:
    """One line: cores, load and the versions that the figures belong to."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, load before {load}; {versions}"


def row(name: str, figures: Sequence[float], unit: str, peer: Sequence[float] | None = None) -> str:
    """Name, median (lowest..highest), and the ratio to the peer's median where there is one."""
    median = statistics.median(figures)
    spread = f"({_short(min(figures))} .. {_short(max(figures))})"
    text = f"{name:<36} {_short(median):>10} {unit:<7} {spread:<22}"
    return f"{text} ratio {median / statistics.median(peer):.2f}" if peer else text


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, the first one to the left."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    print(f"\n{title}")
    for row in (head, *rows):
        cells = [f"{c:<{w}}" if not n else f"{c:>{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  " + "  ".join(cells).rstrip())


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"
