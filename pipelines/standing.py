"""What stands: the materialisation of each dataset that the last run used, from the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.bucket import Bucket
from infra.ledger import Ledger, snapshot_of
from infra.store import Store
from infra.types import Snapshot, UserError
from pipelines import rest
from pipelines.checkpoints import last_manifest


class Standing:
    """The newest state of a root, without any configuration."""

    def __init__(self, root: Bucket) -> None:
        self.root = root
        self.ledger = Ledger(root)
        self.store = Store(root)
        runs = self.ledger.runs()
        self.last_run: dict[str, Any] | None = self.ledger.run(runs[-1]) if runs else None
        self.all: dict[str, list[dict[str, Any]]] = {n: self.ledger.every(n) for n in self.ledger.datasets()}
        self.dones: dict[str, dict[str, Any]] = {n: d[-1] for n, d in self.all.items() if d}
        for name, key in self.ledger.stood().items():
            used = [d for d in self.all.get(name, []) if d["key"] == key]
            if used:
                self.dones[name] = used[-1]  # its last forced or rewritten form

    def done(self, dataset: str) -> dict[str, Any]:
        """The standing `done` of a dataset, or a sentence with the names that exist."""
        if dataset not in self.dones:
            made = ", ".join(self.order()) or "none yet: `plait run` makes them"
            raise UserError(f"{dataset!r} is no dataset of {self.root.uri}: it has {made}")
        return self.dones[dataset]

    def at(self, dataset: str, version: int) -> dict[str, Any]:
        """The `done` that published a version."""
        for done in reversed(self.all.get(dataset, [])):
            if done["snapshot"]["version"] == version:
                return done
        versions = ", ".join(str(d["snapshot"]["version"]) for d in self.all.get(dataset, []))
        raise UserError(f"{dataset}@{version} was never published: the versions of {dataset} are {versions or 'none'}")

    def of_input(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The `done` behind an input as a `done` records it."""
        snapshot = given["snapshot"]
        known = self.all.get(snapshot["name"], [])
        found = [d for d in known if d["snapshot"]["version"] == snapshot["version"]]
        found = found or [d for d in known if d["snapshot"]["digest"] == snapshot["digest"]]  # rewritten since
        return found[-1] if found else None

    def order(self) -> list[str]:
        """Datasets with inputs before readers."""
        names: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name not in seen and name in self.dones:
                seen.add(name)  # before its inputs: what stands may lead in a circle where runs were of several graphs
                for given in self.dones[name]["inputs"].values():
                    visit(given["snapshot"]["name"])
                names.append(name)

        for name in self.dones:
            visit(name)
        last = [s["name"] for s in (self.last_run or {}).get("stages", [])]
        return [n for n in last if n in names] + [n for n in names if n not in last]

    def listings(self) -> list[dict[str, Any]]:
        """Every materialisation that lists a source: without inputs, and with paths."""
        dones = [d for dones in self.all.values() for d in dones if not d["inputs"]]
        return [d for d in dones if "path" in self.store.open(snapshot_of(d)).schema.names]

    def told(self, done: Mapping[str, Any]) -> dict[str, Any] | None:
        """What MLflow answered about a materialisation."""
        return self.ledger.folder(done["dataset"], done["key"]).get(f"told.{done['number']}")

    def rest(self, done: Mapping[str, Any]) -> Any:
        """The rest table of a materialisation."""
        return rest.from_bytes(self.ledger.folder(done["dataset"], done["key"]).get_bytes(done["rest"]))

    def snapshot(self, dataset: str) -> Snapshot:
        """The standing snapshot of a dataset."""
        return snapshot_of(self.done(dataset))

    def checkpoint(self, dataset: str = "model") -> str | None:
        """Address of the last checkpoint's manifest, if there is one."""
        done = self.dones.get(dataset)
        if not done or not done["snapshot"]["rows"]:
            return None
        return self.root.url(last_manifest(self.store, snapshot_of(done))[0])
