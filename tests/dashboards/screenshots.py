"""Takes the pictures of docs/explorer.md of a root: `python -m tests.dashboards.screenshots ROOT [FOLDER]`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from infra.folder_bucket import LocalBucket
from tests.conftest import REPO
from tests.dashboards.browser import CHROMIUM, WHY_NOT, tab
from tests.dashboards.served import explorer

MAX_BYTES = 150_000
VIEWS = {
    "graph": "?stage=captions",
    "clips": "clips?sort=quality&order=down",
    "clip": "",
    "quarantine": "quarantine",
    "packs": "packs",
    "tokenizers": "tokenizers",
    "training": "training",
    "evaluation": "evaluation?suite=composition",
    "answers": "answers?verdict=right",
    "lineage": "",
}


def small_png(data: bytes) -> bytes:
    """The same picture; where it is too large for the repository, in fewer colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (None, 256, 128, 64, 32):
        sink = io.BytesIO()
        shown = image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) if colours else image
        shown.save(sink, "PNG", optimize=True)
        if sink.tell() < MAX_BYTES:
            break
    return sink.getvalue()


def main(root: str, folder: Path) -> None:
    """All views, light; the graph dark as well."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with explorer(LocalBucket(root), [f"root={root}"]) as served, sync_playwright() as driver:
        film = next(row["key"] for row in served.json("/api/clips?kind=video&fate=kept&limit=1")["rows"])
        addresses = VIEWS | {"clip": f"clips/{film}", "lineage": f"lineage/{film}"}
        for dark in (False, True):
            with tab(driver, served.url, dark=dark) as found:
                for name, address in addresses.items() if not dark else [("dark", "training")]:
                    page = found.open(address)
                    page.wait_for_timeout(300)
                    found.until(
                        "[...document.images].every((i) => i.complete || i.getBoundingClientRect().top > innerHeight)"
                    )
                    page.wait_for_timeout(700)
                    (folder / f"explorer-{name}.png").write_bytes(small_png(page.screenshot()))
                    print(f"{folder}/explorer-{name}.png  {found.troubles or ''}")


if __name__ == "__main__":
    if CHROMIUM is None or len(sys.argv) < 2:
        raise SystemExit(WHY_NOT if CHROMIUM is None else __doc__)
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else REPO / "docs" / "pictures")
