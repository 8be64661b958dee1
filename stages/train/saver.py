"""Saving while training goes on, and going on from what was saved. A checkpoint holds

    model.safetensors, config.json              all that is needed to use the model; rank 0's
    trainer.json                                counts, and what the spike guard remembers; rank 0's
    optimizer-RRRRR-of-WWWWW.safetensors        Adam's moments (bf16: and fp32 weights) of the stretches rank R updates

A tensor `trunk.norm.weight@128.exp_avg` is a flat stretch of a parameter from place 128 on, and the manifest says which
stretches lie in which file, so any number of ranks under any stage of ZeRO finds its own (stages/train/engine.py).
A save copies what a rank holds; files are written and uploaded by a thread. When all ranks have uploaded, which the sum
of a later step tells them, rank 0 puts the manifest.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infra.types import DamagedError, PlaitError
from models.any_to_any import config_json, save_weights
from models.trunk import CONFIG_FILE, WEIGHTS_FILE
from stages.train.engine import Engine, Fragment

if TYPE_CHECKING:
    from stages.base import Checkpoint, Checkpoints

TRAINER_FILE = "trainer.json"
USE_FILES = (WEIGHTS_FILE, CONFIG_FILE, TRAINER_FILE)


_TROUBLES = (OSError, PlaitError, SafetensorError)
"""What writing can end in: a full disk, here or below the store; a store that stays away however often it is asked."""


@dataclass
class _Save:
    step: int
    target: str
    facts: Mapping[str, Any]
    thread: threading.Thread | None = None
    files: dict[str, Any] | None = None
    trouble: str | None = None


class Saver:
    """One rank's side of saving; at most one save is under way."""

    def __init__(self, checkpoints: Checkpoints, publishes: Callable[[int], bool], keep: int | None) -> None:
        self._checkpoints, self._publishes, self._keep = checkpoints, publishes, keep
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._save: _Save | None = None
        self.held_s = 0.0
        """Seconds that saving has kept this rank from training since it was last set to 0."""

    def begin(self, step: int, engine: Engine, trainer: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Copy what there is to save and start to write it. A collective call; the save before must have ended."""
        began = time.monotonic()
        assert self._save is None
        told: list[Any] = [self._checkpoints.target(step) if self._rank == 0 else None]
        dist.broadcast_object_list(told)
        kinds = engine.saved_kinds
        own = [(f, {kind: f.tensors[kind].detach().to("cpu", copy=True) for kind in kinds}) for f in engine.own()]
        weights = engine.weights()
        config = config_json(engine.model, step) if weights is not None else ""
        save = _Save(step, told[0], facts)

        def work() -> None:
            try:
                with tempfile.TemporaryDirectory(prefix="plait-save-") as name:
                    folder = Path(name)
                    holds = self._write(folder, own)
                    if weights is not None:
                        save_weights(weights, config, folder)
                        (folder / TRAINER_FILE).write_text(json.dumps(trainer))
                    files = self._checkpoints.upload(save.target, folder)
                    files[self._name]["holds"] = holds
                    save.files = files
            except _TROUBLES as error:
                save.trouble = f"rank {self._rank} could not save step {step} ({_said(error)})"

        save.thread = threading.Thread(target=work, name="plait-save", daemon=True)
        save.thread.start()
        self._save = save
        self.held_s += time.monotonic() - began

    @property
    def busy(self) -> bool:
        """Whether a save is under way, on all ranks alike."""
        return self._save is not None

    def ended(self) -> float:
        """1 where this rank's files are uploaded, or will never be."""
        return float(self._save is not None and (self._save.files is not None or self._save.trouble is not None))

    def finish(self) -> str | None:
        """Wait until all ranks' files are there, then put the manifest; what is not kept goes. A collective call. What
        went wrong, on any rank, in words."""
        assert self._save is not None and self._save.thread is not None
        began, save, thread, self._save = time.monotonic(), self._save, self._save.thread, None
        thread.join()
        everywhere: list[Any] = [None] * self._world
        dist.all_gather_object(everywhere, (save.files, save.trouble))
        troubles = [trouble for _, trouble in everywhere if trouble]
        if troubles:
            return "; ".join(troubles[:3])
        found: list[str | None] = [None]
        if self._rank == 0:
            files = {name: facts for part, _ in everywhere for name, facts in part.items()}
            try:
                self._checkpoints.publish(save.step, save.target, files, save.facts)
                self._forget(save.step)
            except _TROUBLES as error:
                found = [f"step {save.step} could not be published ({_said(error)})"]
        dist.broadcast_object_list(found)
        self.held_s += time.monotonic() - began
        return found[0]

    def _forget(self, newest: int) -> None:
        """Drop what was saved only because of a stop, and what `keep` does not keep."""
        there = self._checkpoints.all()
        results = [c for c in there if self._publishes(c.step)]
        kept = {c.step for c in results}
        if self._keep is not None and results:
            best = min(results, key=lambda c: (c.facts["loss"], c.step))
            kept = {c.step for c in results[-self._keep :]} | {best.step}
        for checkpoint in there:
            if checkpoint.step < newest and checkpoint.step not in kept:
                self._checkpoints.drop(checkpoint)

    @property
    def _name(self) -> str:
        return f"optimizer-{self._rank:05d}-of-{self._world:05d}.safetensors"

    def _write(self, folder: Path, own: list[tuple[Fragment, dict[str, Tensor]]]) -> dict[str, list[int]]:
        """The stretches into their file; which they are."""
        tensors = {f"{f.name}@{f.start}.{kind}": t for f, found in own for kind, t in found.items()}
        save_file(tensors, folder / self._name)
        return {f"{f.name}@{f.start}": [f.start, f.stop] for f, _ in own}


def last_sound(checkpoints: Checkpoints, note: Any) -> Checkpoint | None:
    """The newest checkpoint all of whose files are what was published; damaged ones are set aside, and `note` is told.
    A collective call: each rank checks its share of the files."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for checkpoint in checkpoints.newest_first():
        own = sorted(checkpoints.files(checkpoint))[rank::world]
        trouble = None
        try:
            with checkpoints.fetch(checkpoint, own):
                pass
        except DamagedError as error:
            trouble = str(error)
        troubles: list[Any] = [None] * world
        dist.all_gather_object(troubles, trouble)
        found = [one for one in troubles if one]
        if not found:
            return checkpoint
        if rank == 0:
            checkpoints.set_aside(checkpoint)
            note(f"{found[0].split(':')[0]}: step {checkpoint.step} is left out, training goes on from the one before")
        dist.barrier()
    return None


def restore(engine: Engine, checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
    """What this rank updates, from whichever files hold it."""
    wanted = engine.fragments()
    files = {name: facts["holds"] for name, facts in checkpoints.files(checkpoint).items() if "holds" in facts}
    mine = {fragment.name: fragment for fragment in wanted}
    names = [name for name, holds in files.items() if any(_overlaps(mine, key, at) for key, at in holds.items())]
    with checkpoints.fetch(checkpoint, names) as folder, torch.no_grad():
        for name in names:
            by_parameter: dict[str, list[tuple[str, int, int]]] = {}
            for key, (start, stop) in files[name].items():
                by_parameter.setdefault(key.rpartition("@")[0], []).append((key, start, stop))
            with safe_open(folder / name, "pt") as file:
                for fragment in wanted:
                    for key, start, stop in by_parameter.get(fragment.name, ()):
                        low, high = max(start, fragment.start), min(stop, fragment.stop)
                        for kind in engine.saved_kinds if low < high else ():
                            part = file.get_slice(f"{key}.{kind}")[low - start : high - start]
                            fragment.tensors[kind][low - fragment.start : high - fragment.start].copy_(part)


def _overlaps(wanted: Mapping[str, Fragment], key: str, held: Sequence[int]) -> bool:
    fragment = wanted.get(key.rpartition("@")[0])  # a rank has one stretch of a parameter at the most
    return fragment is not None and held[0] < fragment.stop and fragment.start < held[1]


def _said(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = error.filename2 or error.filename or tempfile.gettempdir()
    return f"{error.strerror or error}: {where}"
