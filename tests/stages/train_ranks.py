"""One rank of trainings without Ray: `python train_ranks.py FOLDER RANK WORLD` does what FOLDER/plan.pickle lists.

Each item: name, stage, training (placement), where its checkpoints lie, the step after which rank 0 is told to stop,
the file of its packs.
What the ranks tell goes to FOLDER/<name>.json.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from models.layout import Format
from tests.stages.fake_job import FakeReader, checkpoints_of


@dataclass(frozen=True)
class PoisonedReader(FakeReader):
    """One pack's loss weights are no numbers, as a broken row would make them."""

    row: int

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        table = super().take(rows, columns)
        if self.row not in rows or "loss_weights" not in columns:
            return table
        found = table.to_pylist()
        weights = found[list(rows).index(self.row)]["loss_weights"]
        weights[3] = float("nan")
        return pa.Table.from_pylist(found, table.schema)


class Told:
    """A sink that answers at once; every method also as `.remote`."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.notes: list[str] = []
        self.fault: str | None = None
        self.shown: list[str] = []
        self.add = SimpleNamespace(remote=lambda step, metrics: self.steps.update({step: metrics}))
        self.note = SimpleNamespace(remote=self.notes.append)
        self.show = SimpleNamespace(remote=lambda name, data: self.shown.append(name))
        self.blame = SimpleNamespace(remote=self._blamed)

    def _blamed(self, sentence: str) -> None:
        self.fault = sentence


class Still:
    """A pulse that nobody hears; rank 0 wishes to stop after a step."""

    def __init__(self, stop_at: int | None) -> None:
        self.step, self.stop_at = 0, stop_at

    def at(self, step: int, what: str, rows: Any = ()) -> None:
        self.step = step

    def wish(self) -> float:
        return float(self.step == self.stop_at and dist.get_rank() == 0)


def main() -> None:
    """Every item in turn, in one process group."""
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}  # as Ray Train does
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    import ray
    import ray.train.torch

    ray.get = lambda value: value  # what `give_up` waits for
    ray.train.torch.get_device = lambda: torch.device("cpu")
    from stages.train.loop import train_worker

    for item in pickle.loads((folder / f"plan-{world}.pickle").read_bytes()):
        packs = pa.ipc.open_file(folder / item.get("packs", "packs.arrow")).read_all()
        form = Format.from_json(packs["format"][0].as_py())
        told = Told()
        config = {
            "stage": item["stage"], "training": item["training"], "form": form,
            "packs": PoisonedReader(packs, item.get("poisoned", -1)),
            "checkpoints": checkpoints_of(folder / item["where"]), "code_vectors": item.get("vectors"), "log_every": 1,
            "profile": item.get("profile", False), "sink": told, "pulse": Still(item.get("stop_at")),
        }  # fmt: skip
        before = item.get("before")
        if before is not None and rank == 0:
            before(folder / item["where"])
        dist.barrier()
        train_worker(config)
        if rank == 0:
            (folder / f"{item['name']}.json").write_text(json.dumps(vars(told), default=lambda _: None))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
