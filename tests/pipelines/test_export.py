"""`plait export`, from outside, over a root whose ledger and datasets are put by hand: nothing is trained."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from infra.checkpoints import CheckpointFolder
from infra.commits import publish_full
from infra.folder_bucket import LocalBucket
from infra.ledger import Ledger
from infra.store import Store
from infra.types import Checkpoint, UserError
from models.any_to_any import AnyToAny, load_model, save_model
from models.attention import DenseAttention, may_see
from models.flops import TrunkShape
from models.layout import Format, Layout
from models.recipe import Parts
from models.tokenizers.text import TOKENIZER_FILE, load_text_tokenizer, train_bpe
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary
from pipelines.export import export
from pipelines.standing import Standing
from stages.pack import Packs
from stages.text_tokenizer import TextTokenizer
from stages.train.train import Model
from tests.conftest import plait

TEXTS = [f"a red square moves left and {word} again" for word in ("stops", "turns", "falls", "it's back 12345")] * 9
SHAPE = TrunkShape(layers=1, width=32, heads=2, kv_heads=1, ffn=32)


def put(root: LocalBucket, stage: Any, rows: list[dict[str, Any]], inputs: dict[str, Any]) -> dict[str, Any]:
    """A materialisation as the engine publishes it: a version of the dataset, and its `done`."""
    store, key = Store(root), uuid.uuid4().hex
    named = [{"key": uuid.uuid4().bytes, "parents": [], "label": "x"} | r for r in rows]
    version = publish_full(store, stage.writes, stage.schema, store.stage(stage.writes, named, stage.schema).fragments, key, 0)  # fmt: skip  # noqa: E501
    snapshot = store.snapshot(stage.writes, version).to_json()
    given = {name: {"snapshot": done["snapshot"], "role": "side"} for name, done in inputs.items()}
    done = {"dataset": stage.writes, "key": key, "snapshot": snapshot, "inputs": given, "state": "done", "why": "made", "at": "2026", "number": 1}  # fmt: skip  # noqa: E501
    assert Ledger(root).folder(stage.writes, key).put("done.1", done)
    return done


def row(checkpoint: Checkpoint, stage: Any, **more: Any) -> dict[str, Any]:
    """A checkpoint's row: what the schema asks for, nothing (0 or "") where it does not matter here."""
    named = {n: getattr(checkpoint, n) for n in ("step", "manifest", "manifest_sha256", "files_sha256")}
    blank = {field.name: "" if field.type == pa.string() else 0 for field in stage.schema}
    return blank | named | more


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a trained BPE, packs made with it, and two checkpoints of a decoder."""
    home = tmp_path_factory.mktemp("export")
    root = LocalBucket(home / "data")
    (home / "bpe").mkdir()
    tokenizer = train_bpe(TEXTS, 300, home / "bpe" / TOKENIZER_FILE)
    saved = CheckpointFolder(root, "checkpoints/text_tokenizer/k").save(0, home / "bpe", {"size": tokenizer.size})
    texts = {"snapshot": {"name": "texts", "version": 1, "digest": ""}}  # collected since
    text = put(root, TextTokenizer, [row(saved, TextTokenizer, kind="bpe")], {"texts": texts})
    vocabulary = Vocabulary.compact(tokenizer.size, 12, text_digest=tokenizer.digest)
    packs = put(root, Packs, [], {"text_tokenizer": text})
    checkpoints = CheckpointFolder(root, "checkpoints/model/k")
    for step in (3, 6):
        config = TrunkConfig(shape=SHAPE, vocabulary_size=vocabulary.size, qk_norm="rms")
        form = Format(layout=Layout(vision="codes"), vocabulary=vocabulary)
        (folder := home / f"step-{step}").mkdir()
        save_model(AnyToAny(config, Parts(), form).initialise(step), folder, step)
        checkpoints.save(step, folder, {})
    put(root, Model, [row(one, Model) for one in checkpoints.all()], {"packs": packs})
    return home


def said(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@torch.no_grad()
def test_transformers_loads_what_was_exported_and_the_note_leads_back(made: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    answer = said(plait("export", "step-000003", str(tmp_path / "out"), "root=data", "--json", cwd=made))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "plait.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    note = json.loads((out / "plait.json").read_text())
    manifest = (made / "data" / note["manifest"]).read_bytes()
    assert note["step"] == 3 and note["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert answer == {"folder": str(out), "format": "hf", **note} and note["layout"] == "qwen3"

    folder = made / "data" / json.loads(manifest)["folder"]
    trunk, vocabulary = (own := load_model(folder)[0]).trunk, own.form.vocabulary
    assert Vocabulary(**note["vocabulary"]) == vocabulary
    model, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values()), told
    ids = (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id)
    assert ids == (vocabulary.bos, vocabulary.eos, vocabulary.pad)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "a red  square, it's 123 ünder"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens == load_text_tokenizer(made / "bpe").encode(text)
    given = torch.tensor([tokens])
    attend = DenseAttention(may_see(torch.zeros(len(tokens))))
    ours = trunk.head(trunk(trunk.embedding(given), torch.arange(len(tokens))[None], attend))
    torch.testing.assert_close(model.eval()(given).logits, ours, rtol=1e-5, atol=1e-5)


def test_the_dataset_means_its_last_checkpoint_and_a_full_folder_is_left_alone(made: Path, tmp_path: Path) -> None:
    standing = Standing(LocalBucket(made / "data"))
    (tmp_path / "empty").mkdir()
    assert export(standing, "model", tmp_path / "empty")["step"] == 6
    before = sorted(tmp_path.rglob("*"))
    for target, folder, layout, why in (
        ("model", "empty", None, "is there and not empty"),
        ("packs", "new", None, "is no checkpoint"),
        ("text_tokenizer", "new", None, "is no checkpoint of a decoder"),
        ("model", "new", "emu3", "give qwen3"),
        ("nothing", "new", None, "is nothing that"),
        ("root=data", "new", None, "is a setting: name what it is about before it"),
    ):
        with pytest.raises(UserError, match=why):
            export(standing, target, tmp_path / folder, layout)
    done = plait("export", "model", "empty", f"root={made / 'data'}", "--format", "gguf", cwd=tmp_path)
    assert done.returncode == 2 and "--format gguf is not known: give --format hf" in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_with_other_parts_is_refused(tmp_path: Path) -> None:
    root = LocalBucket(tmp_path / "data")
    (tmp_path / "c").mkdir()
    form = Format(layout=Layout(vision="latents"), vocabulary=Vocabulary.compact(20, 0), latent_size=8)
    config = TrunkConfig(shape=SHAPE, vocabulary_size=form.vocabulary.size)
    save_model(AnyToAny(config, Parts(), form).initialise(0), tmp_path / "c", 1)
    saved = CheckpointFolder(root, "checkpoints/model/k").save(1, tmp_path / "c", {})
    put(root, Model, [row(saved, Model)], {})
    with pytest.raises(UserError, match=r"has parts no HF layout holds \(patches, time\)"):
        export(Standing(root), "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
