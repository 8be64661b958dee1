"""Every endpoint of the explorer over a million clips, beside Lance asked for the same page directly.

    python -m benchmarks.explorer [--rows 1000000] [--runs 5]

Rows are synthetic (uniform scores, one tiny PNG for all clips), the columns those of the stages. The explorer is asked
as a browser does, through its application, answers parsed. First: with nothing held of a column; then: held. The peer
is a Lance scan with the same filter, order, limit and columns, in the same run. Memory: of this process, above that
before the explorer opened the root, when all endpoints have been asked.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from benchmarks.measure import in_turn, machine, row
from benchmarks.planted import Planted, keys_of, only_parents
from dashboards.explorer.root import Root, has_parent
from dashboards.explorer.server import application
from infra.folder_bucket import LocalBucket
from infra.store import Store, ordering
from pipelines.rest import SCHEMA
from stages.caption.caption import Captions
from stages.clip import Clips
from stages.filter.score import Scores
from stages.ingest import Files, Images
from stages.pack import Packs

WORDS = ("red", "green", "blue", "circle", "square", "star", "black", "white", "moving", "still", "large", "small")
PAGE = 48


def plant(folder: Path, num_rows: int) -> None:
    """Files, images, clips, scores, captions (nine in ten clips) and packs of twenty captions."""
    rng = np.random.default_rng(0)
    root = Planted(folder)
    names = np.char.add(np.char.add("stills/", np.arange(num_rows).astype("U8")), ".png")
    label = pa.array(names.tolist())
    image = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(image, "PNG")
    units = keys_of("digests", num_rows)
    root.put(Files, {"label": label, "path": label, "unit": units, "kind": pa.array(["image"] * num_rows)})
    root.put(Images, {"label": label, "parents": only_parents(units)}, {"files": "rows"}, unit="unit")
    sides = pa.array(rng.integers(64, 1024, num_rows), pa.int32())
    clips = {"label": label, "parents": only_parents(keys_of("images", num_rows)), "source_kind": ["image"] * num_rows}
    clips |= {"num_frames": [1] * num_rows, "width": sides, "height": sides, "media": [image.getvalue()] * num_rows}
    root.put(Clips, clips, {"images": "rows"})
    of_clips = only_parents(keys_of("clips", num_rows))
    scores = {name: pa.array(rng.random(num_rows)) for name in ("text_area", "flow", "quality", "solid_colour")}
    root.put(Scores, {"label": label, "parents": of_clips, "short_side": sides, **scores}, {"clips": "rows"})
    _plant_behind_the_select(root, num_rows, np.asarray(scores["quality"]) >= 0.1, rng)
    root.end_run(["run", f"root={folder}"])


def _plant_behind_the_select(root: Planted, num_rows: int, kept: np.ndarray, rng: np.random.Generator) -> None:
    clips, label = keys_of("clips", num_rows), pa.array([f"stills/{i}.png" for i in range(num_rows)])
    gone = pa.array(~kept)
    num_left = int((~kept).sum())
    same = {"state": "filtered", "reason": "quality", "attempt": 0, "by": "select"}
    told = {"unit": clips.filter(gone), "label": label.filter(gone)}
    told |= {name: pa.array([value] * num_left, SCHEMA.field(name).type) for name, value in same.items()}
    left = pa.table([told.get(f.name, pa.nulls(num_left, f.type)) for f in SCHEMA], schema=SCHEMA)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (int(kept.sum()), 5))]
    texts = [" ".join(line) for line in words.tolist()]
    captions = {
        "label": label.filter(pa.array(kept)),
        "parents": only_parents(clips.filter(pa.array(kept))),
        "text": texts,
    }
    root.put(Captions, captions, {"clips": "rows", "scores": "select"}, left, {"quality": "quality >= 0.1"})
    num_packs = max(1, num_rows // 20)
    members = keys_of("captions", len(texts))
    offsets = pa.array((np.arange(num_packs + 1) * (len(texts) // num_packs)).astype(np.int32))
    segment = {"len": 12, "kind": 0, "document": 0, "rows": 0, "columns": 0, "scale": 0, "num_scales": 0}
    picture = segment | {"len": 256, "kind": 2, "rows": 16, "columns": 16}
    packs: dict[str, Any] = {"parents": pa.ListArray.from_arrays(offsets, members)}
    packs |= {"label": [f"pack {i}" for i in range(num_packs)]}
    packs |= {"segments": [[segment, picture] * 5] * num_packs, "flops": pa.array(rng.random(num_packs) * 1e9)}
    packs |= {"order": pa.array(rng.permutation(num_packs)), "num_tokens": [1340] * num_packs}
    root.put(Packs, packs, {"captions": "rows"})


class Browser:
    """Asks an application as a browser would, without a socket; answers are parsed."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()

    def get(self, address: str) -> bytes:
        """The body of an answer that must be good."""
        return self.loop.run_until_complete(self._get(address))

    async def _get(self, address: str) -> bytes:
        path, _, query = address.partition("?")
        body, status = bytearray(), 0

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": ""}
        scope |= {"query_string": query.encode(), "headers": [(b"host", b"127.0.0.1")], "scheme": "http"}
        scope |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "http_version": "1.1"}
        await self.app(scope, receive, send)
        if status >= 400:
            raise SystemExit(f"{address}: {status} {bytes(body[:300])!r}")
        return bytes(body)


Direct = Callable[[Store], Any]
SCORE = ["key", "label", "short_side", "text_area", "flow", "solid_colour", "quality"]
CLIP, CAPTION = ["key", "label", "width", "height"], ["key", "label", "text"]


def scan(dataset: str, columns: list[str], where: str | None = None, **more: Any) -> Direct:
    """A page as Lance gives it to who asks directly."""
    return lambda store: store.at(dataset).scanner(columns=columns, filter=where, **more).to_table().to_pylist()


def by(column: str, descending: bool = False, **more: Any) -> dict[str, Any]:
    """The first page in the order of a column."""
    return {"order_by": [ordering(column, descending)], "limit": PAGE} | more


def pages(num_rows: int) -> dict[str, tuple[str, Direct]]:
    """Address and direct question of the pages of clips."""
    deep, middle = min(48_000, num_rows // 3), num_rows // 2
    in_range, both = (
        "quality >= 0.5 and quality <= 0.6",
        "contains(lower(text), 'red') and contains(lower(text), 'circle')",
    )
    best = f"/api/clips?sort=quality&order=down&limit={PAGE}"
    return {
        "clips, as they lie": (f"/api/clips?limit={PAGE}", scan("clips", CLIP, limit=PAGE)),
        "clips, in the middle": (
            f"/api/clips?limit={PAGE}&offset={middle}",
            scan("clips", CLIP, limit=PAGE, offset=middle),
        ),
        "clips by a score": (best, scan("scores", SCORE, **by("quality", True))),
        "clips by a score, page 1000": (
            f"{best}&offset={deep}",
            scan("scores", SCORE, **by("quality", True, offset=deep)),
        ),
        "clips in a range": (
            f"/api/clips?sort=flow&range=quality:0.5:0.6&limit={PAGE}",
            scan("scores", SCORE, in_range, **by("flow")),
        ),
        "clips left out": (
            f"/api/clips?fate={quote('filtered: quality')}&limit={PAGE}",
            scan("scores", SCORE, "quality < 0.1", limit=PAGE),
        ),
        "clips by words": (f"/api/clips?words=red+circle&limit={PAGE}", scan("captions", CAPTION, both)),
        "histogram of a score": ("/api/clips/histogram?score=flow", scan("scores", ["flow"])),
    }


def rows(num_rows: int) -> dict[str, tuple[str, Direct]]:
    """Address and direct question of single rows, packs, lineage."""
    key = keys_of("clips", num_rows)[num_rows // 2].as_py()
    pack = keys_of("packs", max(1, num_rows // 20))[7].as_py()
    name, clip = key.hex(), scan("clips", ["key"], f"key = X'{key.hex()}'")
    costly = scan("packs", ["key", "label", "segments", "flops"], **by("flops", True, limit=40))
    return {
        "one clip": (f"/api/clips/{name}", scan("scores", SCORE, has_parent([key]), limit=1)),
        "its bytes": (f"/media/clips/{name}", clip),
        "its thumbnail": (f"/frame/clips/{name}?side=160", clip),
        "packs by FLOPs": ("/api/packs?sort=flops&order=down&limit=40", costly),
        "one pack": (f"/api/packs/{pack.hex()}", scan("packs", ["key", "segments"], f"key = X'{pack.hex()}'")),
        "rows of a dataset": (
            "/api/rows/captions?offset=500&limit=50",
            scan("captions", CAPTION, limit=50, offset=500),
        ),
        "lineage of a clip": (f"/api/lineage/{name}?near=clips", scan("captions", CAPTION, has_parent([key]))),
        "lineage of a raw file": (
            f"/api/lineage/{quote('stills/77.png')}",
            scan("files", ["key", "path"], "path = 'stills/77.png'"),
        ),
        "graph": ("/api/state", lambda store: [store.at(n).count_rows() for n in ("files", "clips", "scores")]),
        "quarantine": ("/api/quarantine", lambda store: store.at("captions").count_rows()),
    }


def measure(folder: Path, num_rows: int, runs: int) -> dict[str, tuple[float, float, float]]:
    """Per endpoint: seconds of the first time, median of those after it, median of Lance asked directly."""
    store = Store(LocalBucket(folder))
    process = psutil.Process()
    before = process.memory_info().rss
    asked = pages(num_rows) | rows(num_rows)
    root = Root(LocalBucket(folder))
    browser = Browser(application(root))
    first: dict[str, float] = {}
    for name, (address, _) in asked.items():
        began = time.perf_counter()
        browser.get(address)
        first[name] = time.perf_counter() - began
    held = process.memory_info().rss - before
    found: dict[str, tuple[float, float, float]] = {}
    for name, (address, direct) in asked.items():

        def explorer(_: int, address: str = address) -> None:
            data = browser.get(address)
            if address.startswith("/api"):
                json.loads(data)

        def lance(_: int, direct: Callable[[Store], Any] = direct) -> None:
            direct(store)

        figures = in_turn({"explorer": explorer, "lance": lance}, runs)
        in_ms = {who: [1e3 * figure for figure in some] for who, some in figures.items()}
        beside = f"first {1e3 * first[name]:.0f} ms, Lance {statistics.median(in_ms['lance']):.1f} ms"
        print(f"{row(name, in_ms['explorer'], 'ms', in_ms['lance'])}  {beside}")
        found[name] = first[name], statistics.median(figures["explorer"]), statistics.median(figures["lance"])
    columns = root.cache.num_bytes / 2**20
    print(f"memory: {held / 2**20:,.0f} MiB more when all were asked once, {columns:,.0f} of them columns")
    return found


def main() -> None:
    """Plant a root, measure, take it away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--root", type=Path, help="a planted root to use again, or where to leave one")
    given = parser.parse_args()
    folder = given.root or Path(tempfile.mkdtemp(prefix="plait-explorer-"))
    print(f"{given.rows:,} clips; {machine('pylance', 'pyarrow', 'starlette', 'numpy')}")
    if not (folder / "ledger").exists():
        began = time.perf_counter()
        plant(folder, given.rows)
        print(f"planted in {time.perf_counter() - began:.0f} s")
    try:
        measure(folder, given.rows, given.runs)
    finally:
        if given.root is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
