"""A picture per materialisation, for MLflow: what one would rather look at than read."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from dashboards.scores import SHOWN, page
from infra.ledger import Ledger, snapshot_of
from infra.store import Store
from infra.types import BadRow, Snapshot
from pipelines import rest

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

THUMBS = 32
SIDE = 168
WORDS = 66
"""Height under a thumbnail for what is said of it, pixels."""
COLUMNS = 6
INK, FAINT, IN, OUT, LEFT, BAD, LINE = "#222222", "#777777", "#4c72b0", "#55a868", "#dd8452", "#c44e52", "#c44e52"
SHORT = {
    **{name: name for name in ("flow", "laion", "hps", "mps")},
    **{"quality": "q", "text_area": "text", "solid_colour": "solid", "short_side": "px"},
}
"""What scores are called under a thumbnail."""


def cards_of(store: Store, snapshot: Snapshot, done: Mapping[str, Any]) -> dict[str, bytes]:
    """Pictures by name: the funnel always; contact sheets of clips and histograms of numbers where there are any.

    Behind a select: histograms of its scores with the thresholds of its clauses, and sheets of what was kept and
    what was dropped, with captions, scores and reasons.
    """
    cards = {"funnel": _funnel(done)}
    if snapshot.rows:
        schema = store.open(snapshot).schema
        if "media" in schema.names and (thumbs := _spread(store, snapshot)):
            cards["contact_sheet"] = _sheet(thumbs, f"{done['dataset']}: {snapshot.rows:,} rows")
        if "champion" in schema.names:
            cards["scores.html"] = page(store.scan(snapshot, list(SHOWN)).to_pylist()).encode()
        numbers = [f.name for f in schema if str(f.type) in ("double", "float", "int32", "int64")]
        if numbers:
            cards["histograms"] = _histograms(store, snapshot, numbers[:16], {})
    return cards | _verdict_cards(store, snapshot, done)


# --- drawing ---------------------------------------------------------------------------------------------------


def _png(image: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _canvas(width: int, height: int) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitting(draw: Any, text: str, width: int, font: Any) -> str:
    """The text, cut at its end to a width in pixels."""
    while text and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else ""
    return text


def _funnel(done: Mapping[str, Any]) -> bytes:
    """Horizontal bars: units in, rows out, then every reason for which a unit gave no row."""
    bars = [("units in", done["rows_in"], IN), ("rows out", done["rows_out"], OUT)]
    bars += [
        (reason, count, BAD if reason.startswith("quarantined") else LEFT)
        for reason, count in list(done["reasons"].items())[:14]
    ]
    image, draw = _canvas(980, 28 * len(bars) + 56)
    draw.text((16, 12), f"{done['dataset']}: what became of {done['rows_in']:,} units", fill=INK, font=_font(18))
    top = max(1, *(b[1] for b in bars))
    for i, (name, count, colour) in enumerate(bars):
        y = 46 + 28 * i
        draw.text((16, y + 3), _fitting(draw, name, 420, _font(13)), fill=INK, font=_font(13))
        draw.rectangle((450, y, 450 + max(1, int(420 * count / top)), y + 19), fill=colour)
        draw.text((880, y + 3), f"{count:,}  {100 * count / max(1, done['rows_in']):.0f} %", fill=INK, font=_font(13))
    return _png(image)


def _histograms(
    store: Store, snapshot: Snapshot, names: Sequence[str], thresholds: Mapping[str, Sequence[float]]
) -> bytes:
    """One histogram per number column, thresholds as red lines; nulls are counted in the title.

    Bins reach from the 0.5 % to the 99.5 % quantile, and to every threshold: one outlier does not flatten the rest.
    """
    width, height = 300, 190
    table = store.scan(snapshot, list(names))
    image, draw = _canvas(4 * width, -(-len(names) // 4) * height)
    for i, name in enumerate(names):
        values = np.asarray(table[name].drop_null(), dtype=float)
        values = values[np.isfinite(values)]
        x, y = i % 4 * width + 14, i // 4 * height + 8
        nulls = f", {table[name].null_count:,} null" if table[name].null_count else ""
        draw.text((x, y), _fitting(draw, f"{name}{nulls}", width - 24, _font(14)), fill=INK, font=_font(14))
        if len(values):
            _bars(draw, (x, y + 32, width - 28, 110), values, thresholds.get(name, ()))
        else:
            draw.text((x, y + 70), "nothing measured", fill=FAINT, font=_font(13))
    return _png(image)


def _bars(draw: Any, box: tuple[int, int, int, int], values: np.ndarray, thresholds: Sequence[float]) -> None:
    x, y, width, height = box
    low, high = np.quantile(values, [0.005, 0.995])
    low, high = min(low, *thresholds, high), max(high, *thresholds, low)
    spare = 0.04 * (high - low) or 0.5
    low, high = low - spare, high + spare
    counts, _ = np.histogram(values.clip(low, high), bins=44, range=(low, high))
    step = width / len(counts)
    for j, count in enumerate(counts):
        tall = int(np.ceil(height * count / max(1, counts.max())))
        if count:
            draw.rectangle((x + j * step, y + height - tall, x + (j + 1) * step - 1.5, y + height), fill=IN)
    draw.line((x, y + height, x + width, y + height), fill=FAINT)
    draw.text((x, y + height + 5), _short(low + spare), fill=FAINT, font=_font(11))
    end = _short(high - spare)
    draw.text((x + width - draw.textlength(end, font=_font(11)), y + height + 5), end, fill=FAINT, font=_font(11))
    free = x
    for threshold in thresholds:
        at = x + width * (threshold - low) / (high - low)
        draw.line((at, y - 6, at, y + height), fill=LINE, width=2)
        said = f"{threshold:g}"
        wide = draw.textlength(said, font=_font(11))
        start = max(free, min(at + 4, x + width - wide))  # labels stand side by side
        draw.text((start, y - 8), said, fill=LINE, font=_font(11))
        free = start + wide + 4


@dataclass(frozen=True)
class _Thumb:
    """One clip on a sheet: its bytes, and lines of words with their colours."""

    media: bytes
    source_kind: str
    lines: Sequence[tuple[str, str]]
    num_frames: int = 1


def _sheet(thumbs: Sequence[_Thumb], title: str) -> bytes:
    """Middle frames, whole, with what is said of each below."""
    rows = max(1, -(-len(thumbs) // COLUMNS))
    image, draw = _canvas(COLUMNS * (SIDE + 12) + 12, rows * (SIDE + WORDS + 10) + 48)
    draw.text((12, 12), title, fill=INK, font=_font(18))
    for i, thumb in enumerate(thumbs):
        x, y = 12 + i % COLUMNS * (SIDE + 12), 44 + i // COLUMNS * (SIDE + WORDS + 10)
        draw.rectangle((x, y, x + SIDE, y + SIDE), fill="#eeeeee")
        picture = _middle(thumb)
        if picture is None:
            draw.text((x + 30, y + 74), "not decodable", fill=BAD, font=_font(13))
        else:
            image.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        at = y + SIDE + 3
        for words, colour in thumb.lines:
            for line in textwrap.wrap(words, 30)[:3]:
                if at > y + SIDE + WORDS - 12:
                    break
                draw.text((x, at), _fitting(draw, line, SIDE, _font(11)), fill=colour, font=_font(11))
                at += 13
    return _png(image)


def _middle(thumb: _Thumb) -> Any:
    from PIL import Image

    from stages import media

    try:
        (picture,) = media.evenly(thumb.media, thumb.source_kind, max(1, thumb.num_frames), 1, 2 * SIDE)
    except BadRow:
        return None
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    return image


# --- what is drawn ---------------------------------------------------------------------------------------------


def _spread(store: Store, snapshot: Snapshot) -> list[_Thumb]:
    """Clips, or drawn answers, spread evenly over a snapshot, with their labels."""
    every = np.unique(np.linspace(0, snapshot.rows - 1, min(THUMBS, snapshot.rows)).astype(int))
    return _thumbs(store, snapshot, every.tolist(), {}, {})


def _thumbs(
    store: Store, clips: Snapshot, places: Sequence[int], said: Mapping[bytes, Any], below: Mapping[bytes, str]
) -> list[_Thumb]:
    """Thumbnails of the clips at these places: `said` is a caption or reason by key, `below` their scores."""
    names = store.open(clips).schema.names
    wanted = [n for n in ("key", "label", "media", "source_kind", "num_frames") if n in names]
    found: list[_Thumb] = []
    for row in store.take(clips, list(places), wanted).to_pylist():
        if row["media"] is None:  # an answer in words
            continue
        lines = [(row["label"] or "", FAINT)]
        if row["key"] in said:
            lines = [said[row["key"]], (below.get(row["key"], ""), FAINT), *lines]
        found.append(_Thumb(row["media"], row.get("source_kind") or "image", lines, row.get("num_frames") or 1))
    return found


def _verdict_cards(store: Store, snapshot: Snapshot, done: Mapping[str, Any]) -> dict[str, bytes]:
    """Cards of a stage behind a select over clips: its thresholds, what it kept and what it dropped."""
    folder = Ledger(store.bucket).folder(done["dataset"], done["key"])
    clauses: Mapping[str, str] = ((folder.get("key.json") or {}).get("notes") or {}).get("select") or {}
    clips = done["inputs"].get("clips")
    judges = [i for name, i in done["inputs"].items() if i["role"] == "select" or name == "scores"]
    if not clauses or clips is None or not judges:
        return {}
    judge, over = snapshot_of(judges[0]), snapshot_of(clips)
    limits = thresholds_of(clauses)
    known = store.open(judge).schema
    numbers = [f.name for f in known if f.name in limits and str(f.type) in ("double", "float", "int32", "int64")]
    cards: dict[str, bytes] = {}
    if numbers:
        cards["thresholds"] = _histograms(store, judge, numbers, limits)
    scores = _scores_by_clip(store, judge, [n for n in SHORT if n in known.names])
    places = {key: at for at, key in enumerate(store.scan(over, ["key"])["key"].to_pylist())}
    kept = _kept(store, snapshot)
    left = rest.from_bytes(folder.get_bytes(done["rest"])) if done.get("rest") else rest.EMPTY
    gone = {row["unit"]: (row["reason"] or "empty", BAD) for row in left.to_pylist() if row["unit"] in places}
    for name, said, title in (("kept", kept, "kept"), ("dropped", gone, "dropped, and why")):
        chosen = _chosen({key: one for key, one in said.items() if key in places}, by_reason=name == "dropped")
        if chosen:
            thumbs = _thumbs(store, over, [places[key] for key in chosen], said, scores)
            cards[name] = _sheet(thumbs, f"{done['dataset']}: {len(said):,} {title} ({len(chosen)} of them)")
    return cards


def thresholds_of(clauses: Mapping[str, str]) -> dict[str, list[float]]:
    """The numbers that clauses compare each column with."""
    number = r"(-?\d+(?:\.\d+)?)"
    found: dict[str, list[float]] = {}
    for clause in clauses.values():
        for name, value in re.findall(rf"\b([a-z_]+)\s*(?:>=|<=|<|>|=)\s*{number}", clause):
            found.setdefault(name, []).append(float(value))
        for name, low, high in re.findall(rf"\b([a-z_]+)\s+between\s+{number}\s+and\s+{number}", clause):
            found.setdefault(name, []).extend([float(low), float(high)])
    return {name: sorted(set(values)) for name, values in found.items()}


def _scores_by_clip(store: Store, judge: Snapshot, names: Sequence[str]) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for row in store.scan(judge, ["parents", *names]).to_pylist():
        shown = [f"{SHORT[name]} {_short(row[name])}" for name in names if row[name] is not None]
        found[row["parents"][0]] = "  ".join(shown)
    return found


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _kept(store: Store, snapshot: Snapshot) -> dict[bytes, tuple[str, str]]:
    """By clip: the caption, where the rows have one."""
    if not snapshot.rows:
        return {}
    names = store.open(snapshot).schema.names
    column = next((n for n in ("text", "label") if n in names), "label")
    where = "passes and duplicate_of is null" if "duplicate_of" in names else None
    table = store.scan(snapshot, ["parents", column], where)
    table = table.filter(pc.greater(pc.list_value_length(table["parents"]), 0))  # a checkpoint has no parents
    parents = pc.list_element(table["parents"].combine_chunks(), 0) if len(table) else pa.array([], pa.binary(16))
    return {key: (said or "", INK) for key, said in zip(parents.to_pylist(), table[column].to_pylist(), strict=True)}


def _chosen(said: Mapping[bytes, tuple[str, str]], by_reason: bool) -> list[bytes]:
    """Keys to show: spread evenly, or each reason in its turn."""
    keys = sorted(said)
    if not by_reason:
        every = np.unique(np.linspace(0, len(keys) - 1, min(THUMBS, len(keys))).astype(int)) if keys else []
        return [keys[at] for at in every]
    groups: dict[str, list[bytes]] = {}
    for key in keys:
        groups.setdefault(said[key][0], []).append(key)
    turns = zip_longest(*(groups[reason] for reason in sorted(groups)))
    chosen = [key for turn in turns for key in turn if key is not None][:THUMBS]
    return sorted(chosen, key=lambda key: (said[key][0], key))
