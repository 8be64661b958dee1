"""Headless Chromium, driven by playwright: nothing is downloaded, and nothing but the explorer is asked."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WHY_NOT = "Chromium is not installed: apt-get install chromium (README, Tests)"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 20_000


@dataclass
class Tab:
    """A page of the browser, with what went wrong in it."""

    page: Any
    base: str
    troubles: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    """Origins."""

    def open(self, address: str) -> Any:
        """Go to a hash address and wait until nothing is being read."""
        self.page.goto(f"{self.base}/#/{address}")
        return self.settled()

    def settled(self) -> Any:
        """Wait until the view has what it asked for."""
        self.until("document.querySelector('main')?.innerText.trim().length > 0")
        self.until("!document.querySelector('main').innerText.includes('Reading ...')")
        return self.page

    def until(self, expression: str) -> None:
        """Wait until it is true: asked from outside, since the page's own policy lets nothing be evaluated inside."""
        end = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"still not true: {expression}"
            self.page.wait_for_timeout(50)

    def text(self) -> str:
        """What is to be read in the view."""
        return self.page.inner_text("main")


@contextmanager
def tab(driver: Any, base: str, dark: bool = False, width: int = 1280, height: int = 860) -> Generator[Tab]:
    """A browser of its own, with an empty profile, of a driver (`sync_playwright`)."""
    scheme = "dark" if dark else "light"
    with tempfile.TemporaryDirectory() as profile:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS, color_scheme=scheme,
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        page = context.pages[0]
        page.set_default_timeout(PATIENCE_MS)
        found = Tab(page, base)
        page.on("console", lambda said: found.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: found.troubles.append(str(error)))
        page.on("request", lambda request: found.asked.add("/".join(request.url.split("/")[:3])))
        yield found
        context.close()
