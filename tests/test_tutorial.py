"""The documents' commands, typed: the tutorial from its first to its last, then those of all other pages beside it."""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from stages import sample_corpus
from tests.conftest import REPO, answered, plait
from tests.test_docs import WEIGHTS, commands, with_names

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

ELSEWHERE = {
    "--address": "needs a cluster: tests/faults/test_nodes.py has one of several nodes",
    "s3": "needs a store: tests/infra/test_conformance.py, tests/test_demo.py and tests/faults have moto's",
    "--watch": "goes on until it is stopped: tests/faults/test_watching.py",
    "--follow": "goes on until the run ends: tests/pipelines/test_going.py",
    "plait cancel": "needs a run that goes on: tests/pipelines/test_going.py",
    "plait ui": "listens until Ctrl-C: tests/dashboards tour it",
    "plait evaluate": "minutes of scoring: the tutorial types it, tests/pipelines/test_evaluate.py has the others",
    "pipeline=evaluate": "as `plait evaluate`",
    "plait compare": "needs answers to judge: tests/pipelines/test_compare.py",
    "plait sync": "tells MLflow, which is off here: tests/faults/test_mlflow.py",
    "--purge": "the tutorial types it",
    "plait forget TARGET": "the same; those with --dry-run are typed",
    "/weights/Emu3-VisionTokenizer": "weights of others: tests/models/test_published.py",
    "--frames": "the corpus of this test trains a model of stills: tests/pipelines/test_sample.py has films",
    "TARGET --json": "written as a form",
}
"""Commands of the other pages that are not typed here, by a part of them; those with weights of others
(test_docs.WEIGHTS) are planned over empty files."""


def typed() -> list[list[str]]:
    """The words of every command of the tutorial that is typed here."""
    blocks = re.findall(r"^```\n(.*?)^```", (REPO / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("plait ")]
    return [shlex.split(line)[1:] for line in lines if not any(part in line for part in NOT_TYPED)]


@dataclass(frozen=True)
class Typed:
    """The tutorial, typed in a folder."""

    folder: Path
    """With `mine`, and `before`: what mine was before anything was purged from it."""
    said: dict[str, str]
    """By command."""


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory, near: dict[str, str]) -> Typed:
    """Films and stills, two of them named as the tutorial names its own, and all its commands."""
    home, said = tmp_path_factory.mktemp("tutorial"), dict[str, str]()
    sample_corpus.write(home / "raw", home / "truth.json", num_videos=5, num_stills=60, num_texts=4)
    films = sorted((home / "raw" / "videos").iterdir())
    (home / "raw" / "clips").mkdir()
    films[0].rename(home / "raw" / "bikes.mp4")
    films[1].rename(home / "raw" / "clips" / "holiday.mp4")
    for given in typed():
        words = [SHORTER.get(word, word).replace("source=DIR", f"source={home / 'raw'}") for word in given]
        steps = [] if any(word.startswith("model.steps") for word in words) else ["model.steps=4"]
        more = [*SHORT, *steps] if words[0] in ("run", "plan") else []
        if "--purge" in words:
            shutil.copytree(home / "mine", home / "before")
        done = plait(*words, *more, cwd=home, env=dict(near))
        told = done.stdout + done.stderr
        assert done.returncode == 0, f"plait {shlex.join(words)}\n{told}"
        said[" ".join(words)] = " ".join(told.split())
    return Typed(home, said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_does_what_it_says(tutorial: Typed) -> None:
    said, drawn = tutorial.said, tutorial.folder / "drawn"
    moved = next(text for name, text in said.items() if name.startswith("plan") and "select.flow" in name)
    assert re.search(r"captions (incremental|fresh)", moved)
    model = next(text for name, text in said.items() if name.startswith("plan") and "model.steps=8" in name)
    assert "model full" in model and "tokenizer fresh" in model  # the model alone is stale
    assert len(list(drawn.glob("*.png"))) == 5 and (drawn / "samples.json").is_file()
    assert "heldout/" in next(text for name, text in said.items() if name.startswith("evaluate"))
    assert "bikes.mp4" in said["lineage bikes.mp4 --down root=mine"] and "files" in said["lineage model root=mine"]
    assert "tainted" in next(text for name, text in said.items() if name.endswith("--purge"))


def others() -> list[str]:
    """Commands of the other pages that are typed, each once: a run as the plan of it."""
    found = [one for page, one in commands() if page not in ("docs/tutorial.md", "docs/reference.md")]
    found = [one.replace("plait run", "plait plan", 1) for one in found if one.split()[2:]]  # verbs alone are spoken of
    found = [re.sub(r" --profile| --wave \d+", "", one) for one in found]  # how it runs: a plan has no such flags
    return sorted({one for one in found if not any(part in one for part in ELSEWHERE)})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_other_pages_do_what_they_are_there_for(
    tutorial: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the tutorial's root, without an error."""
    folder, root = tutorial.folder, "root=before"
    monkeypatch.chdir(folder)
    for name in WEIGHTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    cv2.imwrite(str(folder / "cat.png"), np.full((64, 64, 3), 90, np.uint8))
    last = answered("status", root, cwd=folder)["run_id"]
    step = sorted(one.name for one in (folder / "before" / "checkpoints" / "model").glob("*/step-*.json"))[-1]
    key = answered("quarantine", root, cwd=folder)["rows"][0]["unit"]
    stands_for = {
        "A": "model@1", "B": "model@2", "CHECKPOINT": "model", "TARGET": "clips/holiday.mp4", "STAGE": "clips",
        "PROMPT": "a red circle", "KEY": key, "FOLDER": "model", "videos/film_003.mp4": "bikes.mp4",
        "20261121T03": last, "RUN": last, "step-000200": step.removesuffix(".json"),
    }  # fmt: skip
    wrong = list[str]()
    assert len(others()) > 50
    for number, command in enumerate(others()):
        stands_for["DIR"] = f"out-{number}"
        words = [stands_for.get(word, word) for word in with_names(shlex.split(command)[1:])]
        words = [word for word in words if not re.match("(root|source)=", word)] + [root]
        more = [f"source={folder / 'raw'}", "tracking=none"] if words[0] in ("plan", "doctor", "forget") else []
        done = CliRunner().invoke(app, [*words, *more])
        if done.exit_code:
            wrong.append(f"{command}: {words}\n{done.output}{done.exception!r}")
    assert not wrong, "\n\n".join(wrong)
