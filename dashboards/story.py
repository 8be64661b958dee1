"""A pipeline run told on one page, for MLflow's parent run: what it did in words, and its stages as a picture.

Both are made of the run's record in the ledger and of what each stage read, so they can be made at any later time.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, FAINT, LINE = "#222222", "#777777", "#b8b8b8"
FILL = {
    **{"done": "#dcefe0", "fresh": "#e7eef7", "skipped": "#eeeeee", "empty": "#f6f2d8"},
    **{"failed": "#f6d5d3", "waiting": "#f6f2d8"},
}
"""Of a stage's box, by its state in the run."""
BOX, GAP, MARGIN = (168, 66), (64, 18), 28


@dataclass(frozen=True)
class Story:
    """What the parent run shows."""

    status: str
    """FINISHED, FAILED or KILLED."""
    description: str
    """Markdown."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The evaluation's, so that runs can be compared in one table."""
    pictures: Mapping[str, bytes]
    """PNG by file name."""


def story_of(record: Mapping[str, Any], read: Mapping[str, Sequence[str]]) -> Story:
    """`record`: a run's, from the ledger; `read`: the datasets that each stage read."""
    code = record.get("code") or {}
    tags = {"plait.command": " ".join(["plait", *record.get("command", [])])[:4000]}
    if code:
        tags |= {"mlflow.source.git.commit": code["commit"], "plait.code_changed": str(code["changed"]).lower()}
    if record.get("checkpoint"):
        tags["plait.checkpoint"] = record["checkpoint"]
    return Story(
        status="FINISHED" if record["ok"] else "KILLED" if record.get("stopped") else "FAILED",
        description=described(record),
        tags=tags,
        metrics=record.get("evaluation") or {},
        pictures={"lineage.png": drawn(record["stages"], read)} if record["stages"] else {},
    )


def described(record: Mapping[str, Any]) -> str:
    """Markdown: the command, how it ended, a table of stages, and where to look."""
    stages = record["stages"]
    made = [s for s in stages if s["state"] not in ("fresh", "skipped")]
    seconds = sum(s["seconds"] for s in stages)
    ended = "ended well" if record["ok"] else f"ended with: {record.get('error') or 'it was cut off in between'}"
    lines = [
        f"`plait {' '.join(record.get('command', []))}`",
        "",
        f"{len(made)} of {len(stages)} stages were made in {seconds:,.0f} s; the run {ended}.",
        "",
        "| stage | state | units in | rows out | filtered | quarantined | version |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(_line(stage) for stage in stages),
        "",
    ]
    if record.get("checkpoint"):
        lines += [f"Checkpoint: `{record['checkpoint']}`; `plait lineage` leads from it back to raw files.", ""]
    if bad := [s["name"] for s in stages if s["quarantined"]]:
        lines += [f"Quarantine in {', '.join(bad)}: `plait quarantine` names units, errors and what to do.", ""]
    if code := record.get("code"):
        changed = " with changes that are not committed" if code["changed"] else ""
        lines.append(f"Code: `{code['commit'][:12]}`{changed}.")
    return "\n".join(lines)


def _line(stage: Mapping[str, Any]) -> str:
    names = ("rows_in", "rows_out", "filtered", "quarantined")
    counts = ["" if stage[name] is None else f"{stage[name]:,}" for name in names]
    version = stage["snapshot"]["version"] if stage["snapshot"] else ""
    return f"| {stage['name']} | {stage['state']} | {' | '.join(counts)} | {version} |"


def drawn(stages: Sequence[Mapping[str, Any]], read: Mapping[str, Sequence[str]]) -> bytes:
    """Boxes of stages, from what is read to what reads it, with what became of their units (PNG)."""
    from PIL import Image, ImageDraw, ImageFont

    at = _places(stages, read)
    columns, rows = (max(place[i] for place in at.values()) + 1 for i in (0, 1))
    size = tuple(2 * MARGIN + n * (BOX[i] + GAP[i]) - GAP[i] for i, n in enumerate((columns, rows)))
    image = Image.new("RGB", (int(size[0]), int(size[1])), "white")
    draw, big, small = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(11)
    corner = {name: tuple(MARGIN + n * (BOX[i] + GAP[i]) for i, n in enumerate(place)) for name, place in at.items()}
    for name, (x, y) in corner.items():
        for source in read.get(name, ()):
            if source in corner:
                u, v = corner[source]
                draw.line((u + BOX[0], v + BOX[1] / 2, x, y + BOX[1] / 2), fill=LINE, width=2)
    for stage in stages:
        x, y = corner[stage["name"]]
        box = (x, y, x + BOX[0], y + BOX[1])
        draw.rounded_rectangle(box, 8, fill=FILL.get(stage["state"], "white"), outline=LINE)
        draw.text((x + 10, y + 6), stage["name"], fill=INK, font=big)
        draw.text((x + 10, y + 26), _rows(stage), fill=INK, font=small)
        draw.text((x + 10, y + 44), _said(stage), fill=FAINT, font=small)
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _rows(stage: Mapping[str, Any]) -> str:
    if stage["rows_out"] is None:
        return stage["state"]
    return f"{stage['rows_in']:,} in, {stage['rows_out']:,} rows out"


def _said(stage: Mapping[str, Any]) -> str:
    lost = [f"{stage[name]:,} {name}" for name in ("filtered", "quarantined") if stage[name]]
    return ", ".join(lost) or (f"{stage['state']}, {stage['seconds']:,.0f} s" if stage["seconds"] else stage["state"])


def _places(stages: Sequence[Mapping[str, Any]], read: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, float]]:
    """(column, row) of each stage: behind all that it reads, as near to their height as there is room."""
    column: dict[str, int] = {}
    at: dict[str, tuple[int, float]] = {}
    for stage in stages:  # stages stand behind what they read
        sources = [name for name in read.get(stage["name"], ()) if name in column]
        column[stage["name"]] = 1 + max((column[name] for name in sources), default=-1)
    for number in range(max(column.values()) + 1):
        inside = [name for name in column if column[name] == number]
        sources = {name: [at[s][1] for s in read.get(name, ()) if s in at] for name in inside}
        height = {name: sum(ys) / len(ys) if ys else 0.0 for name, ys in sources.items()}
        for row, name in enumerate(sorted(inside, key=lambda one: height[one])):
            at[name] = (number, float(row))
    return at
