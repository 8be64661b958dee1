"""Scores over the steps of trainings, with their intervals, as one page without a server or a script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 420, 210, 46, 28, 26
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974")
"""Of trainings, in the order in which they were begun."""
OUTCOMES = {"pass": "#2e7d32", "fail": "#c62828", "inconclusive": "#b28704"}
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em;color:#222}svg{margin:0 1em 1em 0}"
    "td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #eee}"
    "td:first-child,th:first-child{text-align:left}"
)
Score = Mapping[str, Any]
SHOWN = ("training", "step", "score", "value", "low", "high", "outcome", "reason", "champion")
"""Columns of a row that is shown."""


def page(rows: Sequence[Score]) -> str:
    """HTML of rows of `scores`: one chart per score, whiskers where 95 % of the draws lie, a ring around champions."""
    trainings = list(dict.fromkeys(row["training"] for row in rows))
    names = sorted({row["score"] for row in rows})
    legend = " ".join(f'<b style="color:{_colour(trainings, one)}">{html.escape(one[:8])}</b>' for one in trainings)
    charts = "".join(_chart(name, [row for row in rows if row["score"] == name], trainings) for name in names)
    return (
        f'<!doctype html><meta charset="utf-8"><title>Scores</title><style>{_STYLE}</style><h1>Scores over steps</h1>'
        f"<p>Trainings {legend}. Whiskers: where 95 % of the draws of questions lie. A ring: the champion then.</p>"
        f"{charts}<h2>Gates</h2>{_gates(rows)}"
    )


def _colour(trainings: Sequence[str], training: str) -> str:
    return COLOURS[trainings.index(training) % len(COLOURS)]


def _chart(name: str, rows: Sequence[Score], trainings: Sequence[str]) -> str:
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return ""
    ends = [row[end] for row in known for end in ("value", "low", "high") if row[end] is not None]
    low, high = min(0.0, *ends), max(ends) if max(ends) > min(0.0, *ends) else 1.0
    last = max(1, *(row["step"] for row in known))
    x = lambda step: LEFT + (WIDTH - LEFT - 12) * step / last  # noqa: E731
    y = lambda value: ABOVE + (HEIGHT - ABOVE - BELOW) * (high - value) / (high - low)  # noqa: E731
    drawn = [f'<text x="{LEFT}" y="16" font-weight="bold">{html.escape(name)}</text>']
    for value in (low, (low + high) / 2, high):
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#eee"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11">{value:.3g}</text>')
    drawn.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 8}" text-anchor="end" font-size="11">step {last:,}</text>')
    for training, own in groupby(
        sorted(known, key=lambda row: (row["training"], row["step"])), lambda r: r["training"]
    ):
        drawn += _line(list(own), _colour(trainings, training), x, y)
    return f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(drawn)}</svg>'


def _line(rows: Sequence[Score], colour: str, x: Any, y: Any) -> list[str]:
    """One training: a line through its checkpoints, a whisker and a dot for each."""
    points = " ".join(f"{x(row['step']):.1f},{y(row['value']):.1f}" for row in rows)
    drawn = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
    for row in rows:
        at, said = f"{x(row['step']):.1f}", f"step {row['step']}: {row['value']:.4g}"
        if row["low"] is not None and row["high"] is not None:
            said += f" ({row['low']:.4g} to {row['high']:.4g})"
            ends = f'y1="{y(row["low"]):.1f}" y2="{y(row["high"]):.1f}"'
            drawn.append(f'<line x1="{at}" x2="{at}" {ends} stroke="{colour}" stroke-opacity=".5"/>')
        dot = f'cx="{at}" cy="{y(row["value"]):.1f}"'
        drawn.append(
            f'<circle {dot} r="3" fill="{OUTCOMES.get(row["outcome"], colour)}"><title>{said}</title></circle>'
        )
        if row["champion"]:
            drawn.append(f'<circle {dot} r="6" fill="none" stroke="{OUTCOMES["pass"]}" stroke-width="1.5"/>')
    return drawn


def _gates(rows: Sequence[Score]) -> str:
    gated = [row for row in rows if row["outcome"]]
    if not gated:
        return "<p>None are set: <code>evaluation.gates</code> holds them.</p>"
    lines = "".join(
        f"<tr><td>{html.escape(row['training'][:8])} step {row['step']}</td><td>{html.escape(row['score'])}</td>"
        f'<td style="color:{OUTCOMES[row["outcome"]]}">{row["outcome"]}</td><td>{html.escape(row["reason"])}</td></tr>'
        for row in reversed(gated)
    )
    return f"<table><tr><th>checkpoint</th><th>score</th><th>outcome</th><th>why</th></tr>{lines}</table>"
