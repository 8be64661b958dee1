"""`plait compare`: a page out of the answers that lie in a root, votes by its own script, and what they come to."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.folder_bucket import LocalBucket
from infra.types import UserError
from stages.evaluate.checkpoints import Checkpoints
from stages.evaluate.generations import Generations
from tests.conftest import answered
from tests.pipelines.test_export import put

A, B, TRAINING = "a" * 64, "b" * 64, "k" * 32
PROMPT = 'a "red" </script> & cat'
NODE = shutil.which("node")


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(sink, "PNG")
    return sink.getvalue()


def answer(name: str, question: int, index: int, shade: int, **more: Any) -> dict[str, Any]:
    about = {"rewritten_from": PROMPT} if question == 0 else {}
    told = {"question": f"q{question}", "index": index, "suite": "composition", "task": "t", "asks": "pictures"}
    told |= {"prompt": f"words {question}", "about": json.dumps(about), "evidence": "objects", "text": ""}
    return told | {"files_sha256": name, "training": TRAINING, "step": 1, "media": png(shade)} | more


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two checkpoints and their answers: twelve questions that both have, one that one has."""
    home = tmp_path_factory.mktemp("compare")
    root = LocalBucket(home / "data")
    blank = {field.name: "" for field in Checkpoints.schema} | {"pixels": 4, "training": TRAINING}
    known = [{"files_sha256": name, "step": step, "checkpoint": f"checkpoints/model/k/step-{step:06d}.json"} for name, step in ((A, 10), (B, 20))]  # fmt: skip  # noqa: E501
    put(root, Checkpoints, [blank | one for one in known], {})
    rows = [answer(name, q, 0, 2 * q + (name == B)) for q in range(12) for name in (A, B)]
    rows += [answer(A, 12, 0, 99), answer(A, 13, 0, 0, asks="texts", media=None, text="words")]
    rows += [answer(B, 13, 0, 0, asks="texts", media=None, text="others")]
    put(root, Generations, rows, {})
    return home


def page_of(home: Path, *more: str) -> str:
    told = answered(
        "compare", "step-000010", "kkkkkkkk/step-000020", "root=data", "--out", "pairs.html", *more, cwd=home
    )
    return Path(told["page"]).read_text()


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script id="pairs" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def shade(inline: str) -> int:
    with Image.open(io.BytesIO(base64.b64decode(inline.removeprefix("data:image/png;base64,")))) as picture:
        return picture.convert("RGB").getpixel((0, 0))[0]  # type: ignore[index]


def test_the_page_holds_each_pair_once_and_no_name_of_a_checkpoint(home: Path) -> None:
    page = page_of(home)
    told = data_of(page)
    seal = json.loads(base64.b64decode(told["sealed"]))
    assert len(told["pairs"]) == len({pair["key"] for pair in told["pairs"]}) == 12
    assert {pair["key"] for pair in told["pairs"]} == set(seal["pairs"])
    for pair in told["pairs"]:
        question, left, right = seal["pairs"][pair["key"]]
        number = int(question[1:])
        assert {left, right} == {A, B} and pair["prompt"] == (PROMPT if number == 0 else f"words {number}")
        assert [shade(pair["left"]), shade(pair["right"])] == [2 * number + (name == B) for name in (left, right)]
    assert seal["labels"] == {A: "kkkkkkkk step 10", B: "kkkkkkkk step 20"}
    open_part = page.replace(told["sealed"], "")
    for name in (A, B, A[:8], B[:8], TRAINING[:8], "step", "000010", "000020"):
        assert name not in open_part
    assert not re.findall(r"(?:src|href)=[\"']?http|@import|url\(", page)  # all of it is in the file
    assert page_of(home) == page and page_of(home, "--seed", "1") != page
    assert len(data_of(page_of(home, "--limit", "3"))["pairs"]) == 3


def voted(home: Path, presses: list[str], rater: str) -> str:
    """Presses keys on the page, in a browser of a few lines, and saves; the file that it offers."""
    script = re.findall(r"<script>(.*?)</script>", page_of(home), re.DOTALL)[0]
    (home / "page.js").write_text(script)
    (home / "told.json").write_text(json.dumps(data_of(page_of(home))))
    stub = """
const fs = require("fs"), vm = require("vm"), made = {}, handlers = {};
const [told, rater, presses] = [fs.readFileSync("told.json", "utf8"), process.argv[2], JSON.parse(process.argv[3])];
const node = () => ({style: {}, img: {}, querySelector() { return this.img; }, click() {}});
const at = (id) => (made[id] = made[id] || node());
at("pairs").textContent = told; at("rater").value = rater;
let text = "";
class Blob { constructor(parts) { text = parts.join(""); } }
const document = {getElementById: at, createElement: node, addEventListener: (name, call) => (handlers[name] = call)};
vm.runInNewContext(fs.readFileSync("page.js", "utf8"), {document, Blob, URL: {createObjectURL: () => ""}, JSON, Math});
for (const key of presses) handlers.keydown({key, target: {tagName: "BODY"}, preventDefault() {}});
at("save").onclick();
console.log(JSON.stringify({text, done: at("done").textContent}));
"""
    (home / "stub.js").write_text(stub)
    command = [NODE or "node", "stub.js", rater, json.dumps(presses)]
    told = json.loads(subprocess.run(command, cwd=home, capture_output=True, text=True, check=True).stdout)
    assert told["done"] == f"{len(json.loads(told['text'])['votes'])} of 12"
    (home / f"{rater}.json").write_text(told["text"])
    return f"{rater}.json"


@pytest.mark.skipif(NODE is None, reason="the page's script is run by node")
def test_keys_vote_and_votes_come_back_as_strengths_and_agreement(home: Path) -> None:
    page = data_of(page_of(home))
    seal = json.loads(base64.b64decode(page["sealed"]))["pairs"]
    for_b = ["1" if seal[pair["key"]][1] == B else "2" for pair in page["pairs"]]
    ann = voted(home, ["2", "Backspace", *for_b, "1"], "ann")  # one taken back, one too many
    bob = voted(home, [*for_b[:9], "0"], "bob")  # who went home early
    told = answered("compare", "--votes", ann, "--votes", bob, cwd=home)
    first, second = told["strengths"]
    assert (first["label"], first["wins"], first["ties"], second["losses"]) == ("kkkkkkkk step 20", 21, 1, 21)
    assert first["value"] > 1 and first["value"] == pytest.approx(-second["value"])
    assert told["votes"] == 22 and told["agreement"]["name"] == "Cohen's kappa" and told["agreement"]["pairs"] == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["step-000010", "--out", "p.html"], "two checkpoints make a pair"),
        (["step-000010", "step-000010", "--out", "p.html"], "one checkpoint, or one twice"),
        (
            ["step-000010", "step-000099", "--out", "p.html"],
            "is no checkpoint that was evaluated: give one of kkkkkkkk/",
        ),
        (["kkkkkkkk", "step-000020", "--out", "p.html"], "means 2 checkpoints"),
        (["step-000010", "step-000020", "--out", "none/p.html"], "no file in a folder that exists"),
        (["step-000010", "step-000020", "--out", "p.html", "--suite", "dpg"], "suites with pictures are composition"),
        (["step-000010", "step-000020"], "writes a page or reads votes"),
        (["step-000010", "--votes", "v.json"], "leave out 'step-000010'"),
        (["--votes", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(home: Path, arguments: list[str], sentence: str) -> None:
    root = ["root=data"] if "--out" in arguments else []
    with pytest.raises(UserError, match=sentence) as caught:
        answered("compare", *arguments, *root, cwd=home)
    assert "\n" not in str(caught.value)
