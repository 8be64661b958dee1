"""Weights that somebody published: a local folder, or an id of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def pretrained(kind: Any, place: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a local folder, or of a hub id with an optional `@revision`."""
    path = Path(place).expanduser()
    if path.exists():
        return kind.from_pretrained(path, local_files_only=True, **options)
    name, _, revision = place.partition("@")
    return kind.from_pretrained(name, revision=revision or None, **options)


def published_folder(place: str, patterns: Sequence[str]) -> Path:
    """The folder itself, or the local copy of a hub id (with an optional `@revision`) of the files named so."""
    path = Path(place).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    name, _, revision = place.partition("@")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
