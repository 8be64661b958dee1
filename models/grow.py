"""Start a model from a checkpoint of ours, whose vocabulary may be smaller, larger or laid out otherwise.

Rows of embedding and head are matched by what they stand for: texts by id, special tokens by name, other ids between
texts and codes by their place after the texts, codes by number. A row that is new begins at the mean of the old rows
of its kind (of all, where there is none) plus its own first weights: its logit is then the mean of theirs, so that, by
Jensen, it draws no more than their mean share of the softmax, and the old tokens keep their order and nearly their
likelihoods. Beginning at the first weights alone, near 0, a new token wins wherever old logits are far below 0 (Hewitt
2021, "Initializing New Word Embeddings for Pretrained Language Models"). The first weights tell new rows apart.

Legend: V rows of the vocabulary, K codes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.any_to_any import AnyToAny
from models.hf_layout import initial, must_agree
from models.layout import Format
from models.recipe import Parts
from models.trunk import CONFIG_FILE, WEIGHTS_FILE, TrunkConfig
from models.vocabulary import SPECIAL, TEXT, VISION, Vocabulary

_SAME_TRUNK = ("tied", "rope_sections")
_SAME_PARTS = ("positions", "span", "scale_embeddings", "code_head", "patches", "noise_steps")
"""Those that say which weights there are and what they compute; weights of the loss may differ."""
_SPECIALS = ("bos", "eos", "pad", "boi", "img", "eoi", "eol", "eof")
NEW = -1
_MEANLESS = ("code_vectors",)
"""No weights, but the tokenizer's own vectors: new rows are these."""


def start_from(model: AnyToAny, place: str) -> None:
    """Weights of `place` into a model that has its first ones: of a checkpoint of ours, or of a published decoder."""
    if is_ours(place):
        grow(model, place)
    else:
        initial(model.trunk, place, model.form.vocabulary.text_size)


def is_ours(place: str) -> bool:
    """Whether it is the folder of a checkpoint that `save_model` wrote."""
    config = Path(place).expanduser() / CONFIG_FILE
    return config.is_file() and {"trunk", "parts", "format"} <= json.loads(config.read_text()).keys()


def must_fit(trunk: TrunkConfig, parts: Parts, form: Format, place: str) -> None:
    """Refuse a checkpoint of ours of other sizes, parts or tokenizers, or whose files are not those of its manifest.

    A tokenizer may be larger or smaller, and then must begin with the same ids, which nothing here can check.
    """
    folder, data, given = _read(place)
    must_agree(trunk, TrunkConfig.from_json(data["trunk"]), place)
    old_trunk, old_parts = TrunkConfig.from_json(data["trunk"]), Parts(**data["parts"])
    pairs = [(f"model.{n}", getattr(trunk, n), getattr(old_trunk, n)) for n in _SAME_TRUNK]
    pairs += [(f"model.parts.{n}", getattr(parts, n), getattr(old_parts, n)) for n in _SAME_PARTS]
    pairs += [(f"the packs' {n}", getattr(form, n), getattr(given, n)) for n in ("latent_size", "feature_size")]
    pairs.append(("packs.layout.interleave", form.layout.interleave, given.layout.interleave))
    for name, own, other in pairs:
        if own != other:
            raise ValueError(f"{place} was trained with {name} {other}, here it is {own}: set it as there")
    for kind, size in (("text", "text_size"), ("vision", "codebook_size")):
        old, new = ((getattr(f.vocabulary, size), getattr(f.vocabulary, f"{kind}_digest")) for f in (given, form))
        if old[0] == new[0] > 0 and old[1] and new[1] and old[1] != new[1]:
            raise ValueError(
                f"{place} was trained with another {kind} tokenizer of {old[0]} ids, which mean other things: keep its"
                " tokenizer (a text tokenizer by text_tokenizer.kind=file), or leave model.init out"
            )
    _verify(folder)


def grow(model: AnyToAny, place: str) -> None:
    """Weights of a checkpoint of ours; rows that it does not have as the head of this file says."""
    must_fit(model.trunk.config, model.parts, model.form, place)
    folder, _, given = _read(place)
    weights = load_file(folder / WEIGHTS_FILE)
    own = {n: t for n, t in model.state_dict().items() if not (model.trunk.config.tied and n == "trunk.head.weight")}
    if own.keys() != weights.keys():
        name = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"{name} is in one of {place} and this model alone: give a checkpoint of the same parts")
    rows = _rows(model, given.vocabulary, weights)
    with torch.no_grad():
        for name, tensor in own.items():
            old = weights[name].to(tensor)
            if old.shape[name in rows :] != tensor.shape[name in rows :]:
                said = f"{name} of shape {list(old.shape)}, this model {list(tensor.shape)}"
                raise ValueError(f"{place} has {said}: give a checkpoint of the same sizes")
            tensor.copy_(_grown(tensor, old, *rows[name], name not in _MEANLESS) if name in rows else old)


def matched(old: Vocabulary, new: Vocabulary) -> NDArray[np.int64]:
    """(V) of each id of `new` the id of `old` that means the same, or `NEW`."""
    found = np.full(new.size, NEW)
    between = [np.flatnonzero(v.modality(np.arange(v.size)) == SPECIAL) for v in (old, new)]
    named = [{getattr(v, name) for name in _SPECIALS} for v in (old, new)]
    places = {int(i) - old.text_size: int(i) for i in between[0] if int(i) not in named[0]}
    for i in between[1].tolist():
        found[i] = NEW if i in named[1] else places.get(i - new.text_size, NEW)
    for name in _SPECIALS:
        found[getattr(new, name)] = getattr(old, name)
    texts, codes = min(old.text_size, new.text_size), min(old.codebook_size, new.codebook_size)
    found[:texts] = np.arange(texts)
    found[new.visual_offset : new.visual_offset + codes] = old.visual_offset + np.arange(codes)
    return found


def _rows(
    model: AnyToAny, old: Vocabulary, weights: dict[str, Tensor]
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int8]]]:
    """Of each tensor with a row for every token, code or scale: the old row of each, kinds of its and of old rows."""
    new = model.form.vocabulary
    tokens = matched(old, new), new.modality(np.arange(new.size)), old.modality(np.arange(old.size))
    found = {f"trunk.{table}.weight": tokens for table in ("embedding", "head")}
    sizes = {"code_out.weight": (new.codebook_size, old.codebook_size)}
    sizes["code_vectors"] = sizes["code_out.weight"]
    if "scale_embedding.weight" in weights:
        sizes["scale_embedding.weight"] = model.parts.max_scales, len(weights["scale_embedding.weight"])
    for name, (size, before) in sizes.items():
        same = np.where(np.arange(size) < before, np.arange(size), NEW)
        found[name] = same, np.zeros(size, np.int8), np.zeros(before, np.int8)
    return found


def _grown(
    fresh: Tensor,
    old: Tensor,
    rows: NDArray[np.int64],
    kinds: NDArray[np.int8],
    old_kinds: NDArray[np.int8],
    from_mean: bool,
) -> Tensor:
    """Old rows where there are such, else first weights, around the mean of the old rows of the kind."""
    made = fresh.clone()
    for kind in (TEXT, SPECIAL, VISION) if from_mean else ():
        of_kind = old_kinds == kind
        around = old[torch.from_numpy(of_kind)] if of_kind.any() else old
        made[torch.from_numpy((rows == NEW) & (kinds == kind))] += around.mean(0)
    known = torch.from_numpy(rows != NEW)
    made[known] = old[torch.from_numpy(rows[rows != NEW])]
    return made


def _read(place: str) -> tuple[Path, dict[str, Any], Format]:
    folder = Path(place).expanduser()
    data = json.loads((folder / CONFIG_FILE).read_text())
    return folder, data, Format.from_json(json.dumps(data["format"]))


def _verify(folder: Path) -> None:
    """Where the manifest lies beside the folder, as in a root: its SHA-256 are those of the files."""
    folder = folder.resolve()
    manifest = folder.parent / f"{folder.name.partition('.')[0]}.json"
    if not manifest.is_file():
        return
    document = json.loads(manifest.read_text())
    if Path(document["folder"]).name != folder.name:
        raise ValueError(f"{folder} was never published, {manifest.name} names {document['folder']}: give that folder")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != document["files"][name]["sha256"]:
            raise ValueError(f"{folder / name} is damaged (its SHA-256 is not the manifest's): give another checkpoint")
