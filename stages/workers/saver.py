"""Saving while training goes on, whatever is trained, and finding what can be gone on from.

A save begins between two steps: a rank copies what it holds, and a thread writes the files and uploads them. When all
ranks have uploaded, which the sum of a later step tells them (stages/workers/ranks.py), rank 0 puts the manifest.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from safetensors import SafetensorError

from infra.types import DamagedError, PlaitError

if TYPE_CHECKING:
    from stages.base import Checkpoint, Checkpoints

Write = Callable[[Path], Mapping[str, Mapping[str, Any]]]
"""Writes a rank's files into a folder; what the manifest is to say of them beside bytes and digest, by name."""
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
    """One rank's side of saving; at most one save is under way.

    `publishes` says of a step whether its checkpoint stays: one that is saved because training was stopped goes when
    there is a newer one. `keep`: of those that stay the last so many, and the one of the lowest "loss" in its facts.
    """

    def __init__(self, checkpoints: Checkpoints, publishes: Callable[[int], bool], keep: int | None = None) -> None:
        self._checkpoints, self._publishes, self._keep = checkpoints, publishes, keep
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._save: _Save | None = None
        self.held_s = 0.0
        """Seconds that saving has kept this rank from training since it was last set to 0."""

    def begin(self, step: int, write: Callable[[], Write], facts: Mapping[str, Any]) -> None:
        """Start to save: `write()` copies what training is about to change, and what it gives writes the files, in a
        thread. A collective call; the save before must have ended. Rank 0's `facts` are the manifest's."""
        began = time.monotonic()
        assert self._save is None
        told: list[Any] = [self._checkpoints.target(step) if self._rank == 0 else None]
        dist.broadcast_object_list(told)
        write_files, save = write(), _Save(step, told[0], facts)
        save.thread = threading.Thread(target=self._work, args=(save, write_files), name="plait-save", daemon=True)
        save.thread.start()
        self._save = save
        self.held_s += time.monotonic() - began

    def _work(self, save: _Save, write: Write) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="plait-save-") as name:
                more = write(Path(name))
                files = self._checkpoints.upload(save.target, Path(name))
                save.files = {file: facts | dict(more.get(file, {})) for file, facts in files.items()}
        except _TROUBLES as error:
            save.trouble = f"rank {self._rank} could not save step {save.step} ({_said(error)})"

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


def take_turn(saver: Saver, due: bool, last: bool, num_ended: float, begin: Callable[[], None]) -> str | None:
    """Between two steps, on all ranks alike: publish the save that has ended on all of them (`num_ended`), `begin` the
    next one where it is `due`, and wait for it where no step comes behind it. What went wrong, in words."""
    trouble = None
    if saver.busy and (due or num_ended == dist.get_world_size()):
        trouble = saver.finish()
    if due and not trouble:
        begin()
    return saver.finish() if last and not trouble else trouble


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


def _said(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = error.filename2 or error.filename or tempfile.gettempdir()
    return f"{error.strerror or error}: {where}"
