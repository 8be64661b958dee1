"""Weights that a setting points at: a local folder or file, or an id on the Hugging Face hub. Not a stage."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from infra.types import UserError


def named(place: str) -> str:
    """What enters the key for a place: a digest of the files where it is local, else the hub id as it is written.

    A folder may move and stay the same weights; a hub id should carry its revision (`name@revision`).
    """
    path = Path(place).expanduser()
    if not path.exists():
        if place.startswith(("/", ".", "~")):
            raise UserError(f"there are no weights at {place}: give a folder that exists, or an id of the hub")
        return place
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        name = file.name if path.is_file() else str(file.relative_to(path))
        digest.update(f"{name} {_sha256(str(file), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=4096)
def _sha256(path: str, size_bytes: int, stamp_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device() -> str:
    """Where models run: the GPU that this worker was given, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def transformers() -> Any:
    """The library, or one sentence on how to get it."""
    try:
        import transformers as library
    except ImportError as error:
        raise UserError("models of the hub need transformers: pip install 'plait[weights]'") from error
    library.logging.set_verbosity_error()
    return library
