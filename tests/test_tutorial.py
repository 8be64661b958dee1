"""The tutorial, typed from its first command to its last, over a small folder of files: what it says comes out."""

import re
import shlex
from pathlib import Path

import pytest

from stages import sample_corpus
from tests.conftest import REPO, plait

NOT_TYPED = {
    "plait ui": "listens until Ctrl-C; tests/dashboards tour it",
    "captions.captioner=openai": "asks an endpoint; tests/stages/test_caption.py has one",
    "recipe=nextflow": "minutes more; test_demo and tests/stages/test_train.py run recipes",
}
SHORTER = {"model.steps=2000": "model.steps=8"}
SHORT = (
    "tokenizer.phases.all=20", "tokenizer.batch=4", "tokenizer.checkpoint_every=20", "model.checkpoint_every=4",
    "text_tokenizer.size=300", "packs.flops_per_pack=3e9",
)  # fmt: skip
"""What makes minutes of its trainings."""


def typed() -> list[list[str]]:
    """The words of every command of the tutorial that is typed here."""
    blocks = re.findall(r"^```\n(.*?)^```", (REPO / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("plait ")]
    return [shlex.split(line)[1:] for line in lines if not any(part in line for part in NOT_TYPED)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films and stills, two of them named as the tutorial names its own."""
    home = tmp_path_factory.mktemp("tutorial")
    sample_corpus.write(home / "raw", home / "truth.json", num_videos=5, num_stills=60, num_texts=4)
    films = sorted((home / "raw" / "videos").iterdir())
    (home / "raw" / "clips").mkdir()
    films[0].rename(home / "raw" / "bikes.mp4")
    films[1].rename(home / "raw" / "clips" / "holiday.mp4")
    return home / "raw"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_does_what_it_says(source: Path, near: dict[str, str], tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for given in typed():
        words = [SHORTER.get(word, word).replace("source=DIR", f"source={source}") for word in given]
        steps = [] if any(word.startswith("model.steps") for word in words) else ["model.steps=4"]
        more = [*SHORT, *steps] if words[0] in ("run", "plan") else []
        done = plait(*words, *more, cwd=tmp_path, env=dict(near))
        told = done.stdout + done.stderr
        assert done.returncode == 0, f"plait {shlex.join(words)}\n{told}"
        said[" ".join(words)] = " ".join(told.split())
    moved = next(text for name, text in said.items() if name.startswith("plan") and "select.flow" in name)
    assert re.search(r"captions (incremental|fresh)", moved)
    model = next(text for name, text in said.items() if name.startswith("plan") and "model.steps=8" in name)
    assert "model full" in model and "tokenizer fresh" in model  # the model alone is stale
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5 and (tmp_path / "drawn" / "samples.json").is_file()
    assert "heldout/" in next(text for name, text in said.items() if name.startswith("evaluate"))
    assert "bikes.mp4" in said["lineage bikes.mp4 --down root=mine"] and "files" in said["lineage model root=mine"]
    assert "tainted" in next(text for name, text in said.items() if name.endswith("--purge"))
