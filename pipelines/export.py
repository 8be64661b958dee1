"""A checkpoint as others read it: a Hugging Face folder, with a note of what it came from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute

from infra.checkpoints import download, read_manifest
from infra.ledger import snapshot_of
from infra.types import UserError
from pipelines.standing import Standing
from pipelines.target import Finder

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

FORMATS = ("hf",)
NOTE_FILE = "plait.json"
_TOKENIZER_FILE, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def export(standing: Standing, target: str, folder: Path, layout: str | None = None) -> dict[str, Any]:
    """Write a checkpoint of a decoder into a folder that is new or empty; what was written, as in plait.json.

    `layout`: where several fit, as "emu3" for Llama's. The folder appears whole or not at all.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and not empty: give a folder that is new or empty")
    done, row = checkpoint_of(standing, target)
    made = folder.resolve().parent / f".{folder.resolve().name}.{os.getpid()}"
    made.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="plait-export-") as name:
            download(standing.root, row["manifest"], Path(name), row["manifest_sha256"])
            note = row | _write(Path(name), made, row["manifest"], layout)
        note["text_tokenizer"] = _text_tokenizer(standing, done, note["vocabulary"]["text_digest"], made)
        (made / NOTE_FILE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")
        made.replace(folder.resolve())  # over an empty folder too
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return note


def checkpoint_of(standing: Standing, target: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The materialisation of a checkpoint, and step, manifest and manifest_sha256; of a dataset its last one."""
    found = Finder(standing).find(target)
    snapshot = snapshot_of(found.done)
    if "manifest" not in standing.store.open(snapshot).schema.names or not snapshot.rows:
        raise UserError(f"{target!r} is {found.label}, which is no checkpoint: give `model`, or a name such as step-000100")  # fmt: skip  # noqa: E501
    table = standing.store.scan(snapshot, ["key", "step", "manifest", "manifest_sha256"]).sort_by("step")
    if found.keys is not None:
        table = table.filter(pc.is_in(table["key"], value_set=found.keys))
    return found.done, table.drop_columns(["key"]).slice(table.num_rows - 1).to_pylist()[0]


def _write(checkpoint: Path, folder: Path, manifest: str, layout: str | None) -> dict[str, Any]:
    """Settings and weights in the layout that fits, with the ids that generation needs."""
    from models.trunk import CONFIG_FILE

    config = checkpoint / CONFIG_FILE
    data = json.loads(config.read_text()) if config.exists() else {}
    if "trunk" not in data or "format" not in data:
        raise UserError(f"{manifest} is no checkpoint of a decoder: give one of `model`")

    from models.any_to_any import load_model
    from models.hf_config import layout_of
    from models.hf_layout import to_hf

    model, _ = load_model(checkpoint)
    if parts := sorted(name for name, _ in model.named_children() if name != "trunk"):
        raise UserError(f"this checkpoint has parts no HF layout holds ({', '.join(parts)}): export a plain decoder")
    trunk, vocabulary = model.trunk, model.form.vocabulary
    ids = {f"{name}_token_id": getattr(vocabulary, name) for name in ("bos", "eos", "pad")}
    try:
        to_hf(trunk, folder, name=layout, ids=ids)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    return {
        "layout": layout_of(trunk.config, layout),
        "vocabulary": data["format"]["vocabulary"],
        "format": data["format"],
    }


def _text_tokenizer(standing: Standing, done: Mapping[str, Any], digest: str, folder: Path) -> str | None:
    """Copy the tokenizer.json that the vocabulary names by its digest, from whichever ancestor holds it.

    The class beside it keeps transformers from rebuilding the splitting rules of the layout's usual tokenizer.
    """
    for _, manifest, sha256 in manifests_above(standing, done):
        files = read_manifest(standing.root, manifest, sha256)[1]["files"]
        if files.get(_TOKENIZER_FILE, {}).get("sha256") == digest:
            with tempfile.TemporaryDirectory(prefix="plait-export-") as name:
                download(standing.root, manifest, Path(name), sha256)
                shutil.copyfile(Path(name) / _TOKENIZER_FILE, folder / _TOKENIZER_FILE)
            (folder / _TOKENIZER_CONFIG).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
            return _TOKENIZER_FILE
    return None


def manifests_above(standing: Standing, done: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Dataset, name and SHA-256 of every checkpoint among what a materialisation was made of, nearest and
    latest first."""
    front, seen = [done], set()
    while front:
        given = [standing.of_input(g) for d in front for g in d["inputs"].values()]
        front = [d for d in given if d is not None and (d["dataset"], d["snapshot"]["version"]) not in seen]
        for before in front:
            mark = (before["dataset"], before["snapshot"]["version"])
            if mark in seen:
                continue
            seen.add(mark)
            snapshot = snapshot_of(before)
            if "manifest" in standing.store.open(snapshot).schema.names:
                table = standing.store.scan(snapshot, ["step", "manifest", "manifest_sha256"])
                table = table.sort_by([("step", "descending")])
                for row in table.to_pylist():
                    yield before["dataset"], row["manifest"], row["manifest_sha256"]
