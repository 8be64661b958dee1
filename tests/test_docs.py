"""What the documents tell one to type is understood: verbs, flags, and settings down to their values."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from infra.types import UserError
from pipelines.cli.compose import setup
from pipelines.cli.main import USAGE_ERROR, app
from pipelines.cli.reference import page

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
WEIGHTS = (
    "QWEN/tokenizer.json",
    "SIGLIP",
    "LPIPS",
    "DETR_DIR",
    "CLIP_DIR",
    "EMU3_DIR",
    "VLM_DIR",
    "LLAMA_DIR",
    "HEAD_FILE",
)
"""What stands for files that a reader has and the test has not."""
MADE_BY_READERS = ("infra/deploy/compose.env",)
ANY = {"recipe=NAME": "recipe=emu3", "scale=NAME": "scale=tiny", "tokenizer=NAME": "tokenizer=vq-tiny"}


def written(text):
    """Commands of a page: lines of its blocks, and what stands between backticks; without what is said behind them."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(found.split()) for found in re.findall(r"`(plait [^`]+)`", plain)]
    # behind two spaces, a # or an open end comes prose
    return [re.split(r"\s{2,}|\s#|\s\.\.\.| \[", line)[0] for line in lines if line.startswith("plait ")]


def commands():
    """(where, command), each once."""
    found = {(page.relative_to(REPO).as_posix(), one) for page in PAGES for one in written(page.read_text())}
    return sorted(found)


def with_names(words: list[str]) -> list[str]:
    """The words with a name where any would do."""
    return [ANY.get(word, word) for word in words]


def overrides_of(words, folder):
    """The settings among the words, with files where weights are asked for, and a name where any would do."""
    named = [word for word in with_names(words) if re.match(r"[+~]?[a-z_]+(\.[\w]+)*=", word)]
    if words[0] == "evaluate" and named:
        named.insert(0, "pipeline=evaluate")
    for place in WEIGHTS:
        named = [word.replace(place, str(folder / "weights")) for word in named]
    return [re.sub(r"=\.\.\.$", f"={folder}", word) for word in named]


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda one: one.replace(" ", "_")[:60])
def test_a_command_of_the_documents_is_understood(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").touch()
    words = shlex.split(command)[1:]
    verbs = typer.main.get_command(app)
    verb = verbs.commands.get(words[0])  # type: ignore[attr-defined]
    assert verb is not None, f"{page}: plait {words[0]} is no verb"
    if not words[1:]:
        return  # it is spoken of, not told
    try:
        verb.make_context(words[0], list(words[1:]))
    except USAGE_ERROR as error:
        pytest.fail(f"{page}: {command}: {error}")
    named = overrides_of(words, tmp_path)
    if named:
        try:
            setup(named)
        except UserError as error:
            pytest.fail(f"{page}: {command}: {error}")


def test_every_page_is_linked_from_the_readme():
    readme = (REPO / "README.md").read_text()
    pages = [p.relative_to(REPO).as_posix() for p in PAGES[2:] if p.parent.name == "docs"]
    assert not [page for page in pages if page not in readme]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"(?<![\w/.])((?:docs|conf|infra|models|stages|pipelines|dashboards|tests|benchmarks)/[\w./-]+\.\w+)", page.read_text())  # fmt: skip  # noqa: E501
    missing = [one for one in named if "NAME" not in one and one not in MADE_BY_READERS and not (REPO / one).exists()]
    assert not missing


def test_the_reference_is_that_of_the_code():
    written_down = (REPO / "docs" / "reference.md").read_text()
    assert written_down == page(), "run `make reference`"
    for stage in setup(["root=plait-data"]).graph.names:
        assert f"### `{stage}`" in written_down
