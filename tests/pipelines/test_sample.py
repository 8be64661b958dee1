"""`plait sample` over a root whose ledger and datasets are put by hand, and over a folder: nothing is trained."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.checkpoints import CheckpointFolder
from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger
from infra.types import UserError
from models.any_to_any import AnyToAny, save_model
from models.flops import TrunkShape
from models.layout import Format, Layout
from models.recipe import Parts
from models.tokenizers.text import BYTES, ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary
from pipelines.cli.main import app
from pipelines.sample_files import write_film
from pipelines.standing import Standing
from pipelines.subjects import subject
from stages.extract import Indices
from stages.pack import Packs
from stages.text_tokenizer import TextTokenizer
from stages.tokenizer.tokenizer import Tokenizer
from stages.train.train import Model
from tests.pipelines.test_export import put, row
from tests.tokenizers import vq

SHAPE = TrunkShape(layers=1, width=32, heads=2, kv_heads=1, ffn=32)


class _Kit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, dataset: str) -> Path:
        return self.folder


def png(colour: int, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(out, "png")
    return out.getvalue()


def film(folder: Path, frames: int = 6) -> Path:
    shown = np.stack([np.full((16, 16, 3), 40 * n, np.uint8) for n in range(frames)])
    return folder / write_film(folder / "film", shown, 8.0)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return root_in(tmp_path_factory.mktemp("sample"), num_stills=2)


def root_in(home: Path, num_stills: int) -> Path:
    """A root: tokenizers, indices of pictures and a film, packs, a checkpoint; and the same as a folder."""
    torch.set_num_threads(1)
    root, local = LocalBucket(home / "data"), home / "local"
    for name in ("tokenizer", "text_tokenizer"):
        (local / name).mkdir(parents=True)
    tokenizer, text = vq(), ByteTokenizer()
    tokenizer.save(local / "tokenizer")
    (local / "text_tokenizer" / BYTES).touch()
    saved = [CheckpointFolder(root, f"checkpoints/{name}/k").save(0, local / name, {"size": 256}) for name in ("tokenizer", "text_tokenizer")]  # fmt: skip  # noqa: E501
    vision = put(root, Tokenizer, [row(saved[0], Tokenizer, kind="vq")], {})
    words = put(root, TextTokenizer, [row(saved[1], TextTokenizer, kind="bytes")], {})
    stage = Indices(size=16, frames_per_clip=3)
    clips = [
        {"media": png(n), "source_kind": "image", "num_frames": 1, "fps": None, "held_out": False}
        for n in (9, 99)[:num_stills]
    ]
    clips.append(
        {"media": film(home).read_bytes(), "source_kind": "video", "num_frames": 6, "fps": 8.0, "held_out": False}
    )
    rows = [one for (one,) in stage.process(clips, stage.setup(_Kit(local / "tokenizer")))]
    indices = put(root, Indices, rows, {"tokenizer": vision})
    tree = {"recipe": {"settings": stage.settings()}}
    Ledger(root).folder("indices", indices["key"]).put("key.json", {"tree": tree})
    packs = put(root, Packs, [], {"text_tokenizer": words, "indices": indices})
    digests = {"vision_digest": tokenizer.digest(), "text_digest": text.digest}
    form = Format(layout=Layout(vision="codes"), vocabulary=Vocabulary.compact(256, 24, **digests))
    config = TrunkConfig(shape=SHAPE, vocabulary_size=form.vocabulary.size)
    save_model(AnyToAny(config, Parts(), form).initialise(1), local, 5)
    (home / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(local / name, home / "model")
    one = CheckpointFolder(root, "checkpoints/model/k").save(5, home / "model", {})
    put(root, Model, [row(one, Model)], {"packs": packs})
    return home


def sampled(made: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """In this process: what samples.json says."""
    app(["sample", *arguments, "--out", str(out)], standalone_mode=False)
    return json.loads((out / "samples.json").read_text())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_are_drawn_with_what_lineage_finds_and_belong_to_their_seeds(made: Path, tmp_path: Path) -> None:
    root = f"root={made / 'data'}"
    options = ["-n", "2", "--negative", "ugly", "--guidance", "2", "--top-k", "9", "--top-p", "0.9", "--stream"]
    note = sampled(made, tmp_path / "a", "model", "a red circle", "a blue square", root, *options)
    assert [(one["prompt"], one["seed"]) for one in note["samples"]] == [
        ("a red circle", 0), ("a red circle", 1), ("a blue square", 0), ("a blue square", 1),
    ]  # fmt: skip
    assert note["step"] == 5 and note["checkpoint"].startswith("checkpoints/model/") and note["settings"]["top_k"] == 9
    shown = [pixels(tmp_path / "a" / one["files"][0]) for one in note["samples"]]
    assert {one.shape for one in shown} == {(16, 16, 3)} and pixels(tmp_path / "a" / note["sheet"]).shape == (16, 64, 3)
    alone = sampled(made, tmp_path / "b", "step-000005", "a blue square", root, *options[2:-1], "--seed", "1")
    assert np.array_equal(pixels(tmp_path / "b" / alone["samples"][0]["files"][0]), shown[3])
    assert alone["tokenizer"] == note["tokenizer"] == vq().digest()


def test_a_film_is_continued_beyond_the_window_and_a_picture_is_read(made: Path, tmp_path: Path) -> None:
    root = f"root={made / 'data'}"
    note = sampled(made, tmp_path / "a", "model", root, "--video", str(film(made)), "--frames", "5")
    assert [Path(name).suffix for name in note["samples"][0]["files"]] == [".mp4", ".gif"]
    assert Image.open(tmp_path / "a" / note["samples"][0]["files"][1]).n_frames == 5
    (made / "one.png").write_bytes(png(50, 40))
    read = sampled(
        made, tmp_path / "b", "model", "what is it?", root, "--image", str(made / "one.png"), "--max-tokens", "6"
    )
    assert (tmp_path / "b" / read["samples"][0]["files"][0]).read_text() == read["samples"][0]["text"] + "\n"
    going = sampled(
        made, tmp_path / "c", "model", "once", root, "--text", "--max-tokens", "40", "-n", "3", "--seed", "3"
    )
    assert all(one["files"][0].endswith(".txt") for one in going["samples"])


def test_a_model_that_was_trained_on_films_alone_draws_films_and_single_frames_if_asked(
    tmp_path: Path,
) -> None:
    root = f"root={root_in(tmp_path, num_stills=0) / 'data'}"
    film = sampled(tmp_path, tmp_path / "a", "model", "a red circle", root)
    assert [Path(name).suffix for name in film["samples"][0]["files"]] == [".mp4", ".gif"]
    assert Image.open(tmp_path / "a" / film["samples"][0]["files"][1]).n_frames == 3
    frame = sampled(tmp_path, tmp_path / "b", "model", "a red circle", root, "--frames", "1")
    assert pixels(tmp_path / "b" / frame["samples"][0]["files"][0]).shape == (16, 16, 3)


def test_a_folder_needs_no_root_and_is_checked(made: Path, tmp_path: Path) -> None:
    note = sampled(made, tmp_path / "a", str(made / "local"), "a", "--size", "24")
    assert pixels(tmp_path / "a" / note["samples"][0]["files"][0]).shape == (24, 24, 3)
    other = tmp_path / "other"
    shutil.copytree(made / "local", other)
    vq(seed=3).save(other / "tokenizer")
    with pytest.raises(UserError, match=r"the tokenizer found has digest .* give that one"), subject(None, str(other)):
        pass
    shutil.rmtree(other / "text_tokenizer")
    with pytest.raises(UserError, match="there is no text_tokenizer beside"), subject(None, str(other)):
        pass


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["model"], "there is no prompt"),
        (["model", "a", "--top-p", "0"], "top-p 0.0"),
        (["model", "a", "--text", "--image", "x.png"], "give one of them"),
        (["model", "a", "--size", "13"], "--size 13 cannot be"),
        (["model", "--image", "gone.png"], "gone.png is no file"),
        (["packs", "a"], "is no checkpoint"),
        (["text_tokenizer", "a"], "is no checkpoint of a decoder"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: list[str], why: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        sampled(made, tmp_path / "out", *arguments, f"root={made / 'data'}")


def test_the_sampled_subject_knows_the_pictures_of_training(made: Path) -> None:
    with subject(Standing(LocalBucket(made / "data")), "model") as found:
        assert found.still is not None and found.still.grids == ((1, 2, 2),)
        assert found.film is not None and found.film.grids == ((3, 2, 2),) and found.film.fps
