"""A checkpoint that is sampled, with the two tokenizers it was trained with: found by lineage, checked by digest."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.checkpoints import download
from infra.ledger import snapshot_of
from infra.types import UserError
from pipelines.export import checkpoint_of, manifests_above
from pipelines.standing import Standing

if TYPE_CHECKING:
    from models.any_to_any import AnyToAny
    from models.generate.pictures import Asked
    from models.raster import TextTokenizer
    from models.tokenizers.interface import VisionTokenizer
    from stages.extract import Indices

VISION, TEXT = "tokenizer", "text_tokenizer"
"""Folders beside a local checkpoint, and datasets of a root."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is sampled."""

    model: AnyToAny
    tokenizer: VisionTokenizer
    text: TextTokenizer
    vision_folder: Path
    still: Asked | None
    """The pictures that the packs had most, None where nobody knows."""
    film: Asked | None
    """The films that they had most; None: none."""
    seen_by: Mapping[str, Any]
    """Settings of `indices`: how pictures are looked at."""
    note: Mapping[str, Any]
    """Checkpoint and digests."""


@contextmanager
def subject(standing: Standing | None, target: str) -> Generator[Subject]:
    """Of a local folder (config.json, model.safetensors, folders tokenizer and text_tokenizer), or of what a root knows
    by this name; its files are there while the context is."""
    place = Path(target).expanduser()
    if (place / "config.json").is_file():
        yield _loaded(place, place / VISION, place / TEXT, {"checkpoint": str(place.resolve())}, None)
        return
    if standing is None:
        raise UserError(
            f"{target!r} is no folder with a checkpoint: give one with config.json, or `model` and root=DIR"
        )
    done, row = checkpoint_of(standing, target)
    with tempfile.TemporaryDirectory(prefix="plait-sample-") as name:
        folder = Path(name)
        download(standing.root, row["manifest"], folder / "model", row["manifest_sha256"])
        for dataset, manifest, sha256 in manifests_above(standing, done):
            if dataset in (VISION, TEXT) and not (folder / dataset).exists():
                download(standing.root, manifest, folder / dataset, sha256)
        note = {"checkpoint": row["manifest"], "manifest_sha256": row["manifest_sha256"]}
        yield _loaded(folder / "model", folder / VISION, folder / TEXT, note, _indices(standing, done))


@dataclass(frozen=True)
class _Seen:
    """What the indices tell of training."""

    settings: Mapping[str, Any]
    rows: Counter[tuple[Any, ...]]
    """Grids, frames a second and seconds, and how often."""


def _indices(standing: Standing, done: Mapping[str, Any]) -> _Seen | None:
    """Of the indices among what a checkpoint was made of."""
    for name, given in done["inputs"].items():
        before = standing.of_input(given)
        if before is None:
            continue
        if name == "indices":
            folder = standing.ledger.folder(before["dataset"], before["key"])
            tree = (folder.get("key.json") or {}).get("tree", {})
            table = standing.store.scan(snapshot_of(before), ["grids", "fps", "num_frames"])
            rows = Counter(
                (tuple(map(tuple, row["grids"])), row["fps"], row["fps"] and row["num_frames"] / row["fps"])
                for row in table.to_pylist()
            )
            return _Seen(tree.get("recipe", {}).get("settings", {}), rows)
        if found := _indices(standing, before):
            return found
    return None


def _loaded(checkpoint: Path, vision: Path, text: Path, note: Mapping[str, Any], seen: _Seen | None) -> Subject:
    from models.any_to_any import load_model
    from models.generate.pictures import Asked
    from models.layout import finest
    from models.tokenizers.interface import SHAPE_FILE, load_tokenizer
    from models.tokenizers.text import load_text_tokenizer
    from stages.weights import device

    data = json.loads((checkpoint / "config.json").read_text()) if (checkpoint / "config.json").is_file() else {}
    if "trunk" not in data or "format" not in data:
        raise UserError(f"{note['checkpoint']} is no checkpoint of a decoder: give one of `model`")
    if not (vision / SHAPE_FILE).is_file() or not text.is_dir():
        raise UserError(f"there is no {VISION if text.is_dir() else TEXT} beside {note['checkpoint']}: it needs the folders {VISION} and {TEXT} that it was trained with")  # fmt: skip  # noqa: E501
    model, step = load_model(checkpoint)
    try:
        tokenizer, words = load_tokenizer(vision), load_text_tokenizer(text)
    except ValueError as error:
        raise UserError(f"{note['checkpoint']} cannot be sampled: {error}") from error
    vocabulary, digests = model.form.vocabulary, (tokenizer.digest(), words.digest)
    wanted = (vocabulary.vision_digest or digests[0], vocabulary.text_digest or digests[1])
    for name, one, other in zip((VISION, TEXT), digests, wanted, strict=True):
        if one != other:
            raise UserError(f"the {name} found has digest {one[:12]}, {note['checkpoint']} was trained with {other[:12]}: give that one")  # fmt: skip  # noqa: E501
    ranked = [row for row, _ in seen.rows.most_common()] if seen else []
    asked = [Asked(grids=grids, fps=fps, duration_s=seconds) for grids, fps, seconds in ranked]
    return Subject(
        model=model.to(device()),
        tokenizer=tokenizer.to(device()),
        text=words,
        vision_folder=vision,
        still=next((one for one in asked if one.fps is None), None),
        film=next((one for one in asked if finest(one.grids)[0] > 1), None),
        seen_by=seen.settings if seen else {},
        note={**note, "step": step, "tokenizer": digests[0], "text_tokenizer": digests[1]},
    )


def reader(found: Subject, size: int | None, frames: int | None) -> Indices:
    """The stage that looks at pictures as they were looked at in training."""
    from stages.extract import Indices

    named = {field.name for field in fields(Indices)}
    given = {name: value for name, value in found.seen_by.items() if name in named}
    given |= {} if size is None else {"size": size}
    given |= {} if frames is None else {"frames_per_clip": frames}
    if "size" not in given:
        raise UserError("nobody knows at which size this checkpoint saw pictures: add --size PIXELS")
    known: dict[str, Any] = {**given, "more_sizes": ()}
    return Indices(**known)
