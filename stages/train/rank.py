"""One rank of a training: its model, its share of data and optimizer, and what all ranks add up. See loop.py."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.any_to_any import load_weights
from models.layout import Format
from models.ulysses import SequenceRanks
from stages.train.build import first_model, model_to_fill
from stages.train.checkpoint import TRAINER_FILE, USE_FILES, copied, restore
from stages.train.engine import Engine
from stages.train.guard import SpikeGuard
from stages.train.loader import Joined, Loader
from stages.train.speed import Speed, peak_flops
from stages.train.told import PLACES, TEXT_COUNT, VISION_COUNT
from stages.workers.ranks import Sums, add_up
from stages.workers.saver import Saver, last_sound

if TYPE_CHECKING:
    from stages.base import Checkpoints, Training
    from stages.train.train import Model
    from stages.workers.pulse import Pulse


@dataclass(frozen=True)
class Verdict:
    """What became of a step."""

    norm: float
    why: str | None
    """Why it was skipped."""

    @property
    def hopeless(self) -> bool:
        """Whether the gradient was not finite."""
        return not math.isfinite(self.norm) or self.norm < 0  # DeepSpeed says -1 of such a norm


class Rank:
    """Set-up and state. `config`: stage, training (placement), packs (reader), checkpoints, form (the packs' format),
    code_vectors (the tokenizer's codebook, or None), sink, pulse."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.train.torch import get_device

        self.stage: Model = config["stage"]
        self.form: Format = config["form"]
        self.pulse: Pulse = config["pulse"]
        self.sink = config["sink"]
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), get_device()
        self._training: Training = config["training"]
        self._checkpoints: Checkpoints = config["checkpoints"]
        self._num_packs = len(config["packs"])
        _kernels(self.device, self._training.deterministic)
        self.ranks = sequence_ranks(self._training.sequence_ranks)
        self.counts = self.ranks.rank == 0
        """Whether it counts what the ranks of its group all have."""
        self.reader, self.readers = self.rank // self.ranks.size, self.world // self.ranks.size
        stage = self.stage
        self.loader = Loader(config["packs"], stage.global_batch, stage.seed, self.form, stage.parts, stage.phases)
        self._resume(config["code_vectors"])
        self.saver = Saver(self._checkpoints, stage.publishes, stage.keep)
        self.skipped = 0
        self._flops: list[float] = []  # of each rank, in the last step
        self._speed = Speed(peak_flops(self.device, stage.precision), self.world, self._training.recompute, self.device)

    def _resume(self, code_vectors: Tensor | None) -> None:
        """Model, optimizer, position: fresh, or those of the last checkpoint that is whole."""
        last = last_sound(self._checkpoints, self.sink.note.remote)
        build = first_model if last is None else model_to_fill
        model = build(self.stage, self.form, code_vectors)
        state: dict[str, Any] = {"updates": 0, "tokens_seen": 0, "since": [0.0, 0], "guard": {}}
        if last is not None:
            with self._checkpoints.fetch(last, USE_FILES) as folder:
                load_weights(model, folder)
                state = json.loads((folder / TRAINER_FILE).read_text())
        if self.stage.precision == "bf16":
            model.bfloat16()  # before it goes to the device, where a whole model in fp32 may have no room
        model.to(self.device).trunk.recompute = self._training.recompute
        packs = self.stage.global_batch // self.readers
        num_passes = math.ceil(packs / (self._training.packs_per_pass or packs))
        self.engine = Engine(model, self.stage, self._training, self.device, num_passes)
        self.engine.set_updates(state["updates"])
        if last is not None:
            restore(self.engine, self._checkpoints, last)
        self.guard = SpikeGuard(self.stage.spike_sigma, **state["guard"])
        self.step: int = last.step if last else 0
        self.tokens_seen: int = state["tokens_seen"]
        self._since: list[float] = state["since"]  # sum of losses, and steps, since a checkpoint was published

    def load(self, step: int) -> list[Joined]:
        """The packs of this rank at a step, as passes."""
        return self.loader.passes(step, self.reader, self.readers, self._training.packs_per_pass)

    def rows(self, step: int) -> list[int]:
        """Positions of these packs in the snapshot."""
        return self.loader.rows(step)[self.reader :: self.readers]

    def add_up(self, of_passes: Sequence[Sequence[float]], passes: Sequence[Joined]) -> Sums:
        """One sum over ranks of all that is to be known of a step (`told.sums_of`)."""
        flops = np.zeros(self.world)
        flops[self.rank] = sum(one.flops for one in passes) / self.ranks.size
        sums = add_up([*np.sum(of_passes, axis=0), *flops], self.pulse, self.saver, self.device)
        self._flops = sums.told[-self.world :]
        return replace(sums, told=sums.told[: -self.world])

    def change(self, learning_rate: float, loss: float) -> Verdict:
        """The optimizer's step, unless the guard says no."""
        said: list[str | None] = []

        def allowed(norm: float) -> bool:
            said.append(self.guard.judge(loss, norm))
            return said[0] is None

        update = self.engine.update(learning_rate, allowed)
        self.skipped += not update.applied
        return Verdict(update.norm, said[0] if said else None)

    def count(self, step: int, sums: Sums) -> None:
        """A step has ended."""
        self.step = step
        self.tokens_seen += int(sums.told[PLACES])
        self._since = [self._since[0] + sums.told[0], self._since[1] + 1]
        self._speed.step(self._flops, sums.told[PLACES], sums.told[TEXT_COUNT], sums.told[VISION_COUNT])

    def rates(self, stalled_s: float) -> dict[str, float]:
        """Speed since the last call."""
        told = self._speed.report(stalled_s, self.saver.held_s)
        self.saver.held_s = 0.0
        return told

    def begin_to_save(self, step: int) -> None:
        """Of a checkpoint that becomes no row the mean loss is taken up again by the next that does."""
        facts = {"loss": self._since[0] / self._since[1], "tokens_seen": self.tokens_seen, "packs": self._num_packs}
        facts["data_position"] = step * self.stage.global_batch
        if self.stage.publishes(step):
            self._since = [0.0, 0]
        state: dict[str, Any] = {"tokens_seen": self.tokens_seen, "since": self._since, "guard": self.guard.state()}
        state["updates"] = self.engine.updates
        self.saver.begin(step, lambda: copied(self.engine, step, state), facts)


def sequence_ranks(size: int) -> SequenceRanks:
    """This rank's group of so many neighbours, which share every pack."""
    if size == 1:
        return SequenceRanks(None)
    groups = [  # all ranks make all groups, in one order
        dist.new_group(list(range(first, first + size))) for first in range(0, dist.get_world_size(), size)
    ]
    own: Any = groups[dist.get_rank() // size]
    return SequenceRanks(own)


def _kernels(device: torch.device, deterministic: bool) -> None:
    if device.type == "cpu":
        torch.set_num_threads(1)  # with a second one, small kernels wait 20 times longer whenever a core is taken
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
