"""A tour through the explorer in headless Chromium: what is seen, what can be clicked, what must not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planted import RUN_ID, keys_of
from infra.folder_bucket import LocalBucket
from tests.dashboards import small_root as small
from tests.dashboards.browser import CHROMIUM, WHY_NOT, tab
from tests.dashboards.served import explorer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)]
CLIP = [key.as_py().hex() for key in keys_of("clips", small.NUM_CLIPS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tour") / "root"
    small.go_on(small.plant(folder))
    return folder


@pytest.fixture(scope="module")
def driver():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(folder, driver):
    with explorer(LocalBucket(folder), [f"root={folder}"]) as served, tab(driver, served.url) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_went_wrong(browser):
    """No error in the console, no request but to the explorer, no script of a caption."""
    browser.troubles.clear()
    yield
    assert browser.troubles == [] and browser.asked == {browser.base}
    assert browser.page.evaluate("window.owned") is None


def test_the_graph_is_live_and_its_stages_open(browser, folder):
    page = browser.open("")
    box = page.locator(".graph .stage", has_text="model").first
    assert "3 of 10 steps" in box.inner_text() and "running" in box.get_attribute("class")
    page.click(".graph .stage:has-text('captions')")
    page.wait_for_selector("section.card >> text=filtered: quality")
    assert "stage=captions" in page.url and "scores (select)" in browser.text()
    curve = LocalBucket(folder).folder / "ledger" / "model" / ("ab" * 16) / "curve.1"
    curve.write_text(curve.read_text()[:-1] + ', [4, {"loss": 0.25}, 4]]')
    page.wait_for_selector(".graph .stage >> text=4 of 10 steps")
    assert page.locator("#going").inner_text() == "running: model"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_clips_are_sorted_filtered_and_opened(browser):
    page = browser.open("clips")
    assert page.locator(".thumb").count() == small.NUM_CLIPS
    page.select_option("label:has-text('sort by') select", "quality")
    page.wait_for_url("**sort=quality**")
    browser.settled()
    page.select_option("select >> nth=1", "down")
    page.wait_for_url("**order=down**")
    browser.until(f"document.querySelector('.thumb')?.href.endsWith('{CLIP[-1]}')")
    page.fill("input[aria-label='quality from']", "2")
    page.fill("input[aria-label='quality to']", "3")
    page.click("button:has-text('Filter')")
    browser.until("document.querySelectorAll('.thumb').length == 2")
    page.click("button[title='Take this filter away']")
    browser.until(f"document.querySelectorAll('.thumb').length == {small.NUM_CLIPS}")
    page.fill("input[aria-label='Words in the caption']", "<script>")
    page.keyboard.press("Enter")
    browser.until("document.querySelectorAll('.thumb').length == 1")
    assert small.SCRIPT in browser.text()
    page.click(".thumb")
    page.wait_for_url(f"**clips/{CLIP[2]}")
    page.wait_for_selector(".levels .item.here")
    assert small.SCRIPT in browser.text() and "stills" not in page.locator(".levels .item").first.inner_text()


def test_a_film_plays_and_shows_its_frames(browser):
    browser.open(f"clips/{CLIP[-1]}")
    browser.until("document.querySelector('video').currentTime > 0.1")
    browser.until("[...document.querySelectorAll('.frames img')].filter((i) => i.naturalWidth > 0).length == 8")


def test_a_file_name_is_text(browser):
    page = browser.open(f"clips/{CLIP[0]}")
    assert page.locator("h1").inner_text() == small.ODD_NAME
    browser.open(f"lineage/{CLIP[0]}")
    page.wait_for_selector(".levels .item.here")
    assert page.locator("img").count() == 0


def test_the_command_that_tries_again_is_copied(browser, folder):
    page = browser.open("quarantine")
    page.click("button:has-text('Copy the retry command')")
    page.wait_for_selector("button:has-text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("plait run --only videos --retry-quarantined") and str(folder) in copied
    page.click("summary:has-text('Its units')")
    page.wait_for_selector("td:has-text('films/bad2.mp4')")
    page.click("td summary >> nth=0")
    page.wait_for_selector("pre:has-text('<b>cut short</b>')")


def test_packs_are_strips_to_scale(browser):
    page = browser.open("packs")
    widths = page.evaluate("[...document.querySelectorAll('.strip')].map((s) => s.getBoundingClientRect().width)")
    assert len(widths) == 6 and widths[1] > 1.2 * widths[0]
    page.click("td a >> nth=1")
    page.wait_for_selector(".strip.tall i.k-codes")
    assert "Made of 2 rows" in browser.text()


def test_reconstructions_and_curves(browser):
    page = browser.open("tokenizers")
    browser.until("document.querySelector('img.recon').naturalWidth == 64")
    assert "27.5" in browser.text()
    page = browser.open("training")
    page.wait_for_selector("figure.chart:has-text('loss by modality')")
    assert "going on" in browser.text()
    page.click("table a >> text=/^model (?!abab)/")
    page.wait_for_selector("td:has-text('step-000010.json')")
    assert "packs@1" in browser.text() and RUN_ID in browser.text()


def test_scores_answers_and_their_verdicts(browser):
    page = browser.open("evaluation")
    assert "Champion: tttttttt step 10" in browser.text() and "0.5 is at least 0.4" in browser.text()
    assert page.locator("figure.chart circle").count() == 3  # two checkpoints, and a ring around the champion
    page.click("a:has-text('Browse answers')")
    page.wait_for_selector(".thumb")
    page.select_option("label:has-text('verdict') select", "right")
    browser.until("document.querySelectorAll('.thumb').length == 2")
    page.click(f'.thumb:has-text("{small.SCRIPT[:8]}")')
    page.wait_for_selector("h2:has-text('What the judge saw')")
    assert page.locator("h1").inner_text() == small.SCRIPT


def test_lineage_from_the_address_and_from_the_field(browser):
    page = browser.open(f"lineage/{CLIP[2]}")
    page.wait_for_selector(".levels path", state="attached")
    page.fill("input[aria-label='What to trace']", "stills/03.png")
    page.keyboard.press("Enter")
    page.wait_for_selector(".levels .item.here:has-text('03.png')")
    page.click(".level:has-text('packs@') .item")
    page.wait_for_selector(".level:has-text('packs@') .item.here")


def test_rows_and_runs(browser):
    page = browser.open("rows/captions")
    assert page.locator("tbody tr").count() == 9
    page.select_option("label:has-text('dataset') select", "marks")
    page.wait_for_selector("h1:has-text('marks@')")
    page = browser.open("runs")
    page.click(f"a:has-text('{RUN_ID}')")
    page.wait_for_selector(".logs:has-text('the run begins')")


def test_the_keyboard_reaches_every_view(browser):
    page = browser.open("")
    page.reload()
    browser.settled()
    names = []
    for _ in range(16):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.innerText"))
    views = ("Graph", "Clips", "Packs", "Lineage", "Runs")
    assert [n for n in names if n in views] == [
        "Graph",
        "Clips",
        "Packs",
        "Lineage",
        "Runs",
    ]
    page.locator("nav a:has-text('Packs')").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".strip")


def test_a_view_that_fails_leaves_the_page(browser):
    page = browser.open(f"clips/{'0' * 32}")
    assert "is the key of no row of clips@1" in page.locator("[role=alert]").inner_text()
    browser.open("nothing")
    assert "There is no view nothing" in browser.text()
    browser.troubles.clear()  # Chromium itself notes each 404
    page.click("nav a:has-text('Clips')")
    page.wait_for_selector(".thumb")
    browser.troubles.clear()


def test_what_was_published_meanwhile_is_offered(tmp_path, driver):
    with explorer(LocalBucket(tmp_path / "later")) as served, tab(driver, served.url) as found:
        page = found.open("clips")
        assert "there are no clips" in found.text()
        page.wait_for_timeout(500)
        small.plant(tmp_path / "later")
        page.click("button:has-text('Something new stands')")
        page.wait_for_selector(".thumb")


def test_a_bare_root_says_so_in_every_view(tmp_path, driver):
    with explorer(LocalBucket(tmp_path / "bare")) as served, tab(driver, served.url) as found:
        for name in (
            "",
            "clips",
            "quarantine",
            "packs",
            "tokenizers",
            "training",
            "evaluation",
            "answers",
            "rows",
            "runs",
        ):
            found.open(name)
            assert "TypeError" not in found.text() and len(found.text()) > 20, name
        assert not [t for t in found.troubles if "404" not in t]


def test_dark_is_dark(folder, driver):
    with explorer(LocalBucket(folder)) as served, tab(driver, served.url, dark=True) as found:
        page = found.open("")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 23, 27)"
