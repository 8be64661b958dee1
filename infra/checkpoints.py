"""Checkpoints of one materialisation: files first, the manifest last and put if absent.

    checkpoints/<dataset>/<key>.N/step-000100.<nonce>/...   the files of one writer, perhaps of many ranks
    checkpoints/<dataset>/<key>.N/step-000100.json          {step, folder, files: {name: {bytes, sha256}}, facts}
    checkpoints/<dataset>/<key>.N/step-000100.json.damaged  a manifest that was set aside: its files did not fit it

Whoever puts the manifest decides; the files of a writer that lost are garbage. N counts forced reruns of a key.
Every file that is read back is checked against the manifest's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bucket import Bucket
from infra.types import Checkpoint, DamagedError, RunError


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints below one folder of the root; picklable."""

    bucket: Bucket
    path: str

    def all(self) -> list[Checkpoint]:
        """Every published checkpoint, lowest step first."""
        return [read_manifest(self.bucket, name)[0] for name in self._manifests()]

    def _manifests(self) -> list[str]:
        depth = self.path.count("/") + 1
        return sorted(n for n in self.bucket.names(self.path) if n.count("/") == depth and n.endswith(".json"))

    def latest(self) -> Checkpoint | None:
        """The highest step whose manifest exists."""
        return next(self.newest_first(), None)

    def newest_first(self) -> Iterator[Checkpoint]:
        """As `all`, highest step first, each read when it is asked for: manifests of many ranks are large."""
        return (read_manifest(self.bucket, name)[0] for name in reversed(self._manifests()))

    def save(self, step: int, folder: Path, facts: Mapping[str, Any]) -> Checkpoint:
        """Upload every file, then put the manifest; where another writer was first, its checkpoint is returned."""
        target = self.target(step)
        return self.publish(step, target, self.upload(target, folder), facts)

    def target(self, step: int) -> str:
        """A folder of the bucket for the files of one writer; its ranks share it."""
        return f"{self.path}/step-{step:06d}.{os.urandom(4).hex()}"

    def upload(self, target: str, folder: Path) -> dict[str, Any]:
        """Upload every file below a local folder; what the manifest says of them, by name."""
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            self.bucket.upload(f"{target}/{relative}", path)
            files[relative] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        return files

    def publish(self, step: int, target: str, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Checkpoint:
        """Put the manifest of files that are there; where another writer was first, its checkpoint is returned."""
        name = f"{self.path}/step-{step:06d}.json"
        manifest = {"step": step, "folder": target, "files": dict(files), "facts": dict(facts)}
        self.bucket.put_if_absent(name, json.dumps(manifest, indent=1, sort_keys=True).encode())
        return read_manifest(self.bucket, name)[0]

    def files(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the manifest says of each file, by name: bytes, sha256, and what the writer added."""
        return read_manifest(self.bucket, checkpoint.manifest, checkpoint.manifest_sha256)[1]["files"]

    @contextmanager
    def fetch(self, checkpoint: Checkpoint, names: Collection[str] | None = None) -> Generator[Path]:
        """A local folder with the checked files, or those of these names. Raises DamagedError before it opens."""
        with tempfile.TemporaryDirectory(prefix="plait-checkpoint-") as folder:
            download(self.bucket, checkpoint.manifest, Path(folder), checkpoint.manifest_sha256, names)
            yield Path(folder)

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Leave a damaged checkpoint out from now on, so that its step can be saved again."""
        self.bucket.put_if_absent(f"{checkpoint.manifest}.damaged", self.bucket.get(checkpoint.manifest) or b"")
        self.bucket.delete(checkpoint.manifest)

    def drop(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint: its manifest first, then its files."""
        folder = read_manifest(self.bucket, checkpoint.manifest)[1]["folder"]
        self.bucket.delete(checkpoint.manifest)
        for name in list(self.bucket.names(folder)):
            self.bucket.delete(name)


def read_manifest(bucket: Bucket, name: str, sha256: str | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """A manifest by name, checked against its own digest where the caller knows it."""
    data = bucket.get(name)
    if data is None:
        raise DamagedError(f"the checkpoint {name} is gone: run `plait run --only {name.split('/')[1]} --force`")
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise RunError(
            f"the manifest {name} is not the one that was published: someone changed it, restore it or retrain"
        )
    document = json.loads(data)
    files = json.dumps({n: f["sha256"] for n, f in document["files"].items()}, sort_keys=True)
    named = hashlib.sha256(files.encode()).hexdigest()
    return Checkpoint(document["step"], name, found, named, document["facts"]), document


def download(
    bucket: Bucket, manifest: str, folder: Path, sha256: str | None = None, names: Collection[str] | None = None
) -> None:
    """Copy a checkpoint's files into a folder; a file that is gone or differs from the manifest is refused."""
    _, document = read_manifest(bucket, manifest, sha256)
    for name, facts in document["files"].items():
        if names is not None and name not in names:
            continue
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"the manifest {manifest} names {name!r}, which would leave its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = f"{document['folder']}/{name}"
        if bucket.size(source) is None:
            raise DamagedError(f"{source} is gone: delete {manifest} to go on from the checkpoint before")
        with bucket.local(source) as path:
            if _sha256(path) != facts["sha256"]:
                raise DamagedError(f"{source} is damaged (its SHA-256 differs from the manifest's): delete {manifest} to go on from the one before")  # fmt: skip  # noqa: E501
            shutil.copyfile(path, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
