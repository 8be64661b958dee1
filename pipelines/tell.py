"""Telling MLflow of materialisations, from the ledger alone: in a run, after a crash, or long afterwards."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.ledger import Folder, Ledger, snapshot_of
from infra.store import Store
from infra.types import Snapshot
from pipelines import rest
from pipelines.live import Point, curve_name

Cards = Callable[[Store, Snapshot, Mapping[str, Any]], Mapping[str, bytes]]
Tales = Callable[[Mapping[str, Any], Mapping[str, Sequence[str]]], Any]
"""Of a run's record and of what its stages read, what the parent run shows (dashboards/story.py)."""
ENGINE_COLUMNS = ("key", "parents", "label")
PICTURE = "picture"
METRICS = "metrics"


def keep_for_telling(folder: Folder, number: int, points: Sequence[Point], pictures: Mapping[str, bytes]) -> None:
    """Put what a job reported beside its `done`, so that MLflow can be made whole from the ledger."""
    folder.put(f"{METRICS}.{number}", {"steps": points})
    folder.bucket.delete(f"{folder.path}/{curve_name(number)}")
    for name, data in pictures.items():
        folder.put_bytes(f"{PICTURE}.{number}.{name if '.' in name else f'{name}.png'}", data)


class Teller:
    """Tells each materialisation once; `tracker` is made at the first one that is untold."""

    def __init__(
        self, ledger: Ledger, store: Store, cards: Cards, tracker: Callable[[], Any], tales: Tales | None = None
    ) -> None:
        self.ledger = ledger
        self.store = store
        self.cards = cards
        self.tales = tales
        self._make = tracker
        self._tracker: Any = None
        self.trouble: str | None = None

    def told(self, done: Mapping[str, Any]) -> dict[str, Any] | None:
        """What MLflow answered, if it was told."""
        return self.ledger.folder(done["dataset"], done["key"]).get(f"told.{done['number']}")

    def tell(self, done: Mapping[str, Any]) -> bool:
        """Tell of one materialisation unless it is told; False where MLflow is away or not wanted."""
        if self.told(done):
            return True
        if self._tracker is None:
            self._tracker = self._make()
        if self._tracker is None or self.trouble:
            return False
        self._tracker.start(done["run_id"], done.get("pipeline", "plait"))
        answer = self._tracker.stage(self._report(done))
        self.trouble = self._tracker.trouble
        if answer is None:
            return False
        self.ledger.folder(done["dataset"], done["key"]).put(f"told.{done['number']}", answer)
        return True

    def end(self, status: str) -> None:
        """Close the parent runs that were opened, each with its story; FINISHED, FAILED or KILLED where it left no
        record."""
        if self._tracker is None:
            return
        for run_id in self._tracker.opened:
            self._tracker.end(run_id, status, self._tale(run_id))

    def _tale(self, run_id: str) -> Any:
        if self.tales is None or run_id not in self.ledger.runs():
            return None
        record = self.ledger.run(run_id)
        dones = [self.ledger.folder(s["name"], s["key"]).done() for s in record["stages"] if s.get("key")]
        return self.tales(record, {done["dataset"]: list(done["inputs"]) for done in dones if done})

    def _report(self, done: Mapping[str, Any]) -> Any:
        from infra.tracking import Report

        folder = self.ledger.folder(done["dataset"], done["key"])
        key = folder.get("key.json") or {"tree": {"recipe": {"settings": {}}, "inputs": {}}, "notes": {}}
        schema = self.store.open(snapshot_of(done)).schema
        checkpoints: list[dict[str, Any]] = []
        if "manifest" in schema.names:
            table = self.store.scan(snapshot_of(done), ["step", "manifest", "manifest_sha256"])
            checkpoints = table.sort_by("step").to_pylist()
        given = {name: i for name, i in done["inputs"].items() if i["role"] != "select"}
        scored = next((given[n]["snapshot"] for n in ("clips", "captions") if n in given), None)
        left = rest.from_bytes(folder.get_bytes(done["rest"])).to_pylist() if done.get("rest") else []
        return Report(
            done=done,
            tree=key["tree"],
            notes=key["notes"],
            schema=[[f.name, str(f.type)] for f in schema if f.name not in ENGINE_COLUMNS],
            metrics=self._metrics(folder, done),
            pictures={**self.cards(self.store, snapshot_of(done), done), **self._pictures(folder, done["number"])},
            rest=[{**r, "unit": r["unit"].hex()} for r in left],
            checkpoints=checkpoints,
            model_ids=self._model_ids(given),
            evaluation_set=scored,
            scores=self._scores(done) if "champion" in schema.names else (),
        )

    def _scores(self, done: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of a dataset of scores as they were written: in the order in which checkpoints were trained."""
        columns = ("checkpoint", "training", "step", "suite", "asked", "score", "value", "low", "high", "outcome", "reason", "champion")  # fmt: skip  # noqa: E501
        rows = self.store.scan(snapshot_of(done), list(columns)).to_pylist()
        return [row | {"uri": self.store.bucket.url(row["checkpoint"])} for row in rows]

    @staticmethod
    def _metrics(folder: Folder, done: Mapping[str, Any]) -> list[Point]:
        """What the job told of its steps; what was kept before steps had times is of the time it was done."""
        at_ms = int(datetime.datetime.fromisoformat(done["at"]).timestamp() * 1000)
        steps = (folder.get(f"{METRICS}.{done['number']}") or {"steps": []})["steps"]
        return [(step, row, at[0] if at else at_ms) for step, row, *at in steps]

    @staticmethod
    def _pictures(folder: Folder, number: int) -> dict[str, bytes]:
        start = f"{PICTURE}.{number}."
        names = [n for n in folder.names() if n.startswith(start)]
        return {n.removeprefix(start).removesuffix(".png"): folder.get_bytes(n) for n in names}

    def _model_ids(self, given: Mapping[str, Any]) -> dict[str, str]:
        """MLflow's id of the last checkpoint of each side input."""
        found: dict[str, str] = {}
        for name, item in given.items():
            if item["role"] != "side":
                continue
            for done in self.ledger.dones(name):
                if done["snapshot"]["version"] == item["snapshot"]["version"]:
                    models = (self.told(done) or {}).get("models") or {}
                    if models:
                        found[name] = models[max(models, key=int)]
        return found

    def sync(self) -> tuple[int, int]:
        """Tell of everything that is untold, oldest first: (told now, still untold).

        A wave before the last is a step on the way, and MLflow is not told of it.
        """
        dones = [d for name in self.ledger.datasets() for d in self.ledger.dones(name) if not d.get("wave")]
        untold = sorted((d for d in dones if not self.told(d)), key=lambda d: d["at"])
        told = sum(self.tell(done) for done in untold)
        return told, len(untold) - told
