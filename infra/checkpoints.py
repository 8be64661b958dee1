"""Checkpoints of one materialisation: files first, the manifest last and put if absent.

    checkpoints/<dataset>/<key>.N/step-000100.<nonce>/...   the files of one writer
    checkpoints/<dataset>/<key>.N/step-000100.json          {step, folder, files: {name: {bytes, sha256}}, facts}

Whoever puts the manifest decides; the files of a writer that lost are garbage. N counts forced reruns of a key.
Every file that is read back is checked against the manifest's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bucket import Bucket
from infra.types import Checkpoint, RunError


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints below one folder of the root; picklable."""

    bucket: Bucket
    path: str

    def all(self) -> list[Checkpoint]:
        """Every published checkpoint, lowest step first."""
        depth = self.path.count("/") + 1
        names = [n for n in self.bucket.names(self.path) if n.count("/") == depth and n.endswith(".json")]
        return [read_manifest(self.bucket, name)[0] for name in sorted(names)]

    def latest(self) -> Checkpoint | None:
        """The highest step whose manifest exists."""
        saved = self.all()
        return saved[-1] if saved else None

    def save(self, step: int, folder: Path, facts: Mapping[str, Any]) -> Checkpoint:
        """Upload every file, then put the manifest; where another writer was first, its checkpoint is returned."""
        name = f"step-{step:06d}"
        target = f"{self.path}/{name}.{os.urandom(4).hex()}"
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            self.bucket.upload(f"{target}/{relative}", path)
            files[relative] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = {"step": step, "folder": target, "files": files, "facts": dict(facts)}
        data = json.dumps(manifest, indent=1, sort_keys=True).encode()
        self.bucket.put_if_absent(f"{self.path}/{name}.json", data)
        return read_manifest(self.bucket, f"{self.path}/{name}.json")[0]

    @contextmanager
    def fetch(self, checkpoint: Checkpoint) -> Generator[Path]:
        """A local folder with the checked files."""
        with tempfile.TemporaryDirectory(prefix="plait-checkpoint-") as folder:
            download(self.bucket, checkpoint.manifest, Path(folder), checkpoint.manifest_sha256)
            yield Path(folder)


def read_manifest(bucket: Bucket, name: str, sha256: str | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """A manifest by name, checked against its own digest where the caller knows it."""
    data = bucket.get(name)
    if data is None:
        raise RunError(f"the checkpoint {name} is gone: run `plait run --only {name.split('/')[1]} --force`")
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise RunError(
            f"the manifest {name} is not the one that was published: someone changed it, restore it or retrain"
        )
    document = json.loads(data)
    files = json.dumps({n: f["sha256"] for n, f in document["files"].items()}, sort_keys=True)
    named = hashlib.sha256(files.encode()).hexdigest()
    return Checkpoint(document["step"], name, found, named, document["facts"]), document


def download(bucket: Bucket, manifest: str, folder: Path, sha256: str | None = None) -> None:
    """Copy a checkpoint's files into a folder; a file that differs from the manifest is refused."""
    _, document = read_manifest(bucket, manifest, sha256)
    for name, facts in document["files"].items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"the manifest {manifest} names {name!r}, which would leave its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with bucket.local(f"{document['folder']}/{name}") as path:
            if _sha256(path) != facts["sha256"]:
                raise RunError(f"{document['folder']}/{name} is damaged (its SHA-256 differs from the manifest's): delete {manifest} to go on from the one before")  # fmt: skip  # noqa: E501
            target.write_bytes(path.read_bytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
