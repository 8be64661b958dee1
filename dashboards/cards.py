"""A picture per materialisation, for MLflow: what one would rather look at than read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from infra.store import Store
from infra.types import Snapshot

THUMBS = 40
THUMB_SIDE = 128


def cards_of(store: Store, snapshot: Snapshot, done: Mapping[str, Any]) -> dict[str, bytes]:
    """Pictures by name: the funnel always; a contact sheet of clips, histograms of numbers where there are any."""
    cards = {"funnel": _funnel(done)}
    if snapshot.rows:
        schema = store.open(snapshot).schema
        if "media" in schema.names:
            cards["contact_sheet"] = _contact_sheet(store, snapshot)
        numbers = [f.name for f in schema if str(f.type) in ("double", "float", "int32", "int64")]
        if numbers:
            cards["histograms"] = _histograms(store, snapshot, numbers[:12])
    return cards


def _png(image: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _canvas(width: int, height: int) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def _funnel(done: Mapping[str, Any]) -> bytes:
    """Horizontal bars: units in, rows out, then every reason for which a unit gave no row."""
    bars = [("units in", done["rows_in"], "#4c72b0"), ("rows out", done["rows_out"], "#55a868")]
    bars += [
        (reason, count, "#c44e52" if reason.startswith("quarantined") else "#dd8452")
        for reason, count in list(done["reasons"].items())[:12]
    ]
    image, draw = _canvas(900, 24 * len(bars) + 40)
    draw.text((8, 8), f"{done['dataset']}: {done['rows_in']} units in", fill="black")
    top = max(1, *(b[1] for b in bars))
    for i, (name, count, colour) in enumerate(bars):
        y = 32 + 24 * i
        draw.rectangle((420, y, 420 + int(400 * count / top), y + 16), fill=colour)
        draw.text((8, y + 2), name[:66], fill="black")
        draw.text((828, y + 2), f"{count:,}", fill="black")
    return _png(image)


def _contact_sheet(store: Store, snapshot: Snapshot) -> bytes:
    """Middle frames of clips spread evenly over the snapshot, with their labels."""
    from PIL import Image

    from stages.frames import prepare

    every = np.linspace(0, snapshot.rows - 1, min(THUMBS, snapshot.rows)).astype(int)
    columns = 8
    image, draw = _canvas(columns * (THUMB_SIDE + 4), -(-len(every) // columns) * (THUMB_SIDE + 18))
    rows = store.take(snapshot, every.tolist(), ["label", "media", "source_kind"]).to_pylist()
    for i, row in enumerate(rows):
        thumb = Image.fromarray(prepare(row["media"], row["source_kind"], 1, THUMB_SIDE)[0])
        x, y = i % columns * (THUMB_SIDE + 4), i // columns * (THUMB_SIDE + 18)
        image.paste(thumb, (x, y))
        draw.text((x, y + THUMB_SIDE + 2), (row["label"] or "")[-20:], fill="black")
    return _png(image)


def _histograms(store: Store, snapshot: Snapshot, names: list[str]) -> bytes:
    """One small histogram per number column; nulls are counted in the title."""
    table = store.scan(snapshot, names)
    image, draw = _canvas(4 * 230, -(-len(names) // 4) * 150)
    for i, name in enumerate(names):
        column = table[name]
        values = np.asarray(column.drop_null(), dtype=float)
        values = values[np.isfinite(values)]
        x, y = i % 4 * 230, i // 4 * 150
        draw.text((x + 6, y + 4), f"{name}  ({column.null_count} null)"[:36], fill="black")
        if not len(values):
            continue
        counts, edges = np.histogram(values, bins=40)
        for j, count in enumerate(counts):
            height = int(96 * count / max(1, counts.max()))
            draw.rectangle((x + 6 + j * 5, y + 124 - height, x + 9 + j * 5, y + 124), fill="#4c72b0")
        draw.text((x + 6, y + 130), f"{edges[0]:.3g} .. {edges[-1]:.3g}", fill="black")
    return _png(image)
