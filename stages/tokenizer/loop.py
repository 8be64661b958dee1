"""The tokenizer's training loop of one worker, top to bottom: set up, resume, then load, learn, tell, save in order.

Reading in advance, saving beside training and what the ranks add up are those of every trained stage (stages/workers/);
what is trained is in learner.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from models.tokenizers.interface import VisionTokenizer, to_pixels
from stages.tokenizer.learner import STATE_FILE, Learner
from stages.tokenizer.measure import measure, perceptual
from stages.tokenizer.samples import Batch, Samples
from stages.workers.prefetch import Prefetch
from stages.workers.ranks import Sums, add_up, at_fault, give_up
from stages.workers.saver import Saver, Write, last_sound, take_turn

if TYPE_CHECKING:
    from stages.base import Checkpoints
    from stages.tokenizer.tokenizer import Tokenizer
    from stages.workers.pulse import Pulse


def train_worker(config: dict[str, Any]) -> None:
    """One worker, from set-up to the last step. `config`: see `Worker`; and training (placement), log_every."""
    its = Worker(config)
    stage, learner, pulse, rank, world = its.stage, its.learner, its.pulse, its.rank, its.world
    load = partial(its.samples.batch, rank=rank, world=world)
    with Prefetch(load, learner.step, stage.steps, config["training"].ahead) as ready:
        stops = False
        while learner.step < stage.steps and not stops:
            # 1. Load: a pure function of the step, made ready meanwhile.
            pulse.at(learner.step + 1, "loading", partial(its.samples.drawn, learner.step, rank, world))
            batch = next(ready)

            # 2. Learn.
            pulse.at(learner.step + 1, "computing")
            told = learner.learn(to_pixels(torch.from_numpy(batch.pixels).to(its.device)), rank, world)

            # 3. Tell. All ranks add up means, wishes to stop and ended saves, and act alike on what they read there.
            names = sorted(told)
            sums = add_up([told[name] for name in names], pulse, its.saver, its.device)
            means = {name: total / world for name, total in zip(names, sums.told, strict=True)}
            if not all(map(math.isfinite, means.values())):
                its.blame(batch)
                return
            if rank == 0 and (learner.step % config["log_every"] == 0 or learner.step == stage.steps):
                its.sink.add.remote(learner.step, means)

            # 4. Save, also where all leave; the files are written beside the next steps.
            stops = sums.stops > 0
            if trouble := its.save(sums, stops):
                give_up(its.sink, its.saver, trouble)
                return


class Worker:
    """Set-up and state of one worker. `config`: stage, clips (reader), checkpoints, sink, pulse."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.train.torch import get_device

        self.stage: Tokenizer = config["stage"]
        self.pulse: Pulse = config["pulse"]
        self.sink = config["sink"]
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # with a second one, small kernels wait 20 times longer whenever a core is taken
        checkpoints: Checkpoints = config["checkpoints"]
        last = last_sound(checkpoints, self.sink.note.remote)
        self.learner = Learner(self.stage, self.device).restore(checkpoints, last)
        self.samples = Samples(config["clips"], self.stage, self.learner.tokenizer.stride)
        self.samples.rejected |= {} if last is None else last.facts["rejected"]
        self.saver = Saver(checkpoints, self.stage.in_turn)

    def save(self, sums: Sums, stops: bool) -> str | None:
        """Publish the save that has ended on all ranks, begin the next where it is due; what went wrong, in words."""
        step = self.learner.step
        due, last = self.stage.in_turn(step) or stops, step == self.stage.steps or stops
        return take_turn(self.saver, due, last, sums.saves_ended, partial(self._begin_to_save, step))

    def _begin_to_save(self, step: int) -> None:
        """Held-out clips are measured for checkpoints that come in their turn."""
        everything: list[Any] = [None] * self.world
        dist.all_gather_object(everything, dict(self.samples.rejected))
        for rejected in everything:
            self.samples.rejected |= rejected
        self.pulse.at(step, "saving")
        facts: dict[str, Any] = {}
        if self.rank == 0:
            measured: Mapping[str, Any] = {}
            if self.stage.in_turn(step):
                measured, picture = quality(self.stage, self.learner.tokenizer, self.samples)
                self.sink.show.remote("reconstructions", picture)
            facts = facts_of(self.stage, self.learner.tokenizer, self.samples, measured)
        self.saver.begin(step, self._copied, facts)

    def _copied(self) -> Write:
        """All ranks hold the same, and rank 0 writes it."""
        if self.rank:
            return lambda folder: {}
        tokenizer = self.learner.tokenizer
        return writing(tokenizer, tokenizer.copied(), self.learner.state())

    def blame(self, batch: Batch) -> None:
        """Tell the driver which clips made the error infinite or no number; a collective call, nothing is saved."""
        strange = (~self.learner.error_N.isfinite()).nonzero().flatten().tolist()
        own = {(self.rank, n): f"rank {self.rank}, {self.samples.described([batch.rows[n]])}" for n in strange}
        everywhere = "in every sample: the weights are at fault, lower tokenizer.learning_rate"
        where = at_fault(own, self.stage.batch, everywhere, "and no clip says why")
        give_up(self.sink, self.saver, f"the error of step {self.learner.step} is not finite, {where}")


def quality(stage: Tokenizer, tokenizer: VisionTokenizer, samples: Samples) -> tuple[dict[str, Any], bytes]:
    """What is measured on held-out clips, and a picture of reconstructions (PNG)."""
    tokenizer.eval()
    found = measure(tokenizer, samples, perceptual(stage, next(tokenizer.parameters()).device))
    tokenizer.train()
    return found


def facts_of(
    stage: Tokenizer, tokenizer: VisionTokenizer, samples: Samples, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint's manifest says, with what was measured."""
    facts: dict[str, Any] = {
        **measured,
        "kind": stage.shape.kind,
        "codebook_size": tokenizer.codebook_size,
        "clips": len(samples.seen),
        "heldout_clips": len(samples.unseen),
        "digest": tokenizer.digest(),
        "rejected": dict(samples.rejected),
    }
    return json.loads(json.dumps(facts))


def writing(tokenizer: VisionTokenizer, weights: Mapping[str, Tensor] | None, state: Mapping[str, Tensor]) -> Write:
    """Writes the files of a checkpoint; of copies (`weights`, `state`) while training goes on."""

    def write(folder: Path) -> dict[str, dict[str, Any]]:
        tokenizer.save(folder, weights)
        save_file(dict(state), folder / STATE_FILE)
        return {}

    return write
