"""Checkpoints of models that lie in a root, with the tokenizers that each was trained on: from the bucket alone.

A training that still goes on has no `done`: its checkpoints are found by their manifests, what they were made of by
the digests in its key.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.checkpoints import CheckpointFolder
from infra.ledger import Ledger, snapshot_of
from infra.store import Store
from infra.types import Checkpoint, Snapshot

_ROOT = "checkpoints"
_DATA = ("captions", "indices", "texts")


def last_manifest(store: Store, snapshot: Snapshot) -> tuple[str, str]:
    """Manifest and SHA-256 of the highest step of a dataset of checkpoints that has rows."""
    table = store.scan(snapshot, ["step", "manifest", "manifest_sha256"]).sort_by("step")
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    return last["manifest"], last["manifest_sha256"]


@dataclass(frozen=True)
class Found:
    """One checkpoint of a model. Manifests are named by their path in the root and their SHA-256."""

    training: str
    """Key of the materialisation that it belongs to."""
    checkpoint: Checkpoint
    tokenizer: tuple[str, str]
    text_tokenizer: tuple[str, str]
    pixels: int
    """Side of the pictures that it was trained on; of any other shape the root of their number."""
    data: Mapping[str, Mapping[str, Any]]
    """Snapshots that its packs were made of, by dataset."""
    at: str
    """When its training was begun (ISO 8601, UTC): the order of trainings."""

    @property
    def order(self) -> tuple[str, str, int]:
        """Trainings as they were begun, in each the steps."""
        return self.at, self.training, self.checkpoint.step


class Checkpoints:
    """Looks for the checkpoints of one dataset in a root."""

    def __init__(self, store: Store, dataset: str = "model") -> None:
        self.store, self.dataset = store, dataset
        self.ledger = Ledger(store.bucket)
        self._dones: dict[str, list[dict[str, Any]]] = {}

    def all(self) -> list[Found]:
        """Every checkpoint that can be used, in the order of trainings and steps; equal weights are one."""
        found = sorted((one for key in self._keys() for one in self._of(key)), key=lambda one: one.order)
        return list({one.checkpoint.files_sha256: one for one in reversed(found)}.values())[::-1]

    def _keys(self) -> list[str]:
        prefix = f"{_ROOT}/{self.dataset}/"
        return sorted({n.removeprefix(prefix).partition("/")[0] for n in self.store.bucket.names(prefix.rstrip("/"))})

    def _of(self, folder: str) -> Iterator[Found]:
        """Those of one materialisation; none while what it was trained on is not known, or gone."""
        key = folder.partition(".")[0]
        ledger = self.ledger.folder(self.dataset, key)
        document = ledger.get("key.json")
        made_of = self._made_of(document) if document else None
        if document is None or made_of is None:
            return
        settings = document["tree"]["recipe"]["settings"]
        at = (ledger.get("claim.1") or {"at": ""})["at"]
        for checkpoint in CheckpointFolder(self.store.bucket, f"{_ROOT}/{self.dataset}/{folder}").all():
            # one that was saved because training was stopped becomes no row of `model` either
            if checkpoint.step % settings["checkpoint_every"] == 0 or checkpoint.step == settings["steps"]:
                yield Found(key, checkpoint, *made_of, at)

    def _made_of(
        self, document: Mapping[str, Any]
    ) -> tuple[tuple[str, str], tuple[str, str], int, dict[str, Any]] | None:
        """Vision tokenizer, text tokenizer, pixels, data."""
        tree = document["tree"]
        given = {**tree["inputs"], **tree["recipe"]["sides"]}
        tokenizer = self._published("tokenizer", given.get("tokenizer"))
        packs = [d for d in self._all("packs") if d["snapshot"]["digest"] == given.get("packs")]
        if not packs or "text_tokenizer" not in packs[-1]["inputs"]:
            return None
        text = self._published("text_tokenizer", packs[-1]["inputs"]["text_tokenizer"]["snapshot"]["digest"])
        size = self._size(packs[-1]["inputs"]["indices"]["snapshot"]["version"])
        inputs = packs[-1]["inputs"]
        data = {name: inputs[name]["snapshot"] for name in _DATA if name in inputs}
        return (tokenizer, text, size, data) if tokenizer and text and size else None

    def _size(self, version: int) -> int | None:
        """Of the clips as `indices` were extracted of them."""
        dones = [d for d in self._all("indices") if d["snapshot"]["version"] == version]
        document = self.ledger.folder("indices", dones[-1]["key"]).get("key.json") if dones else None
        return document["tree"]["recipe"]["settings"]["size"] if document else None

    def _published(self, dataset: str, digest: str | None) -> tuple[str, str] | None:
        """The manifest of the highest step of the snapshot of this digest."""
        dones = [d for d in self._all(dataset) if d["snapshot"]["digest"] == digest and d["snapshot"]["rows"]]
        if not dones:
            return None
        return last_manifest(self.store, snapshot_of(dones[-1]))

    def _all(self, dataset: str) -> list[dict[str, Any]]:
        if dataset not in self._dones:
            self._dones[dataset] = self.ledger.every(dataset)
        return self._dones[dataset]
