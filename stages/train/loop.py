"""The training loop of one worker, top to bottom: load, learn, add up, change the weights, tell, save.

Ray Train has started the workers and their process group; DeepSpeed ZeRO shards what they hold (engine.py); steps come
from a pure function of their number (loader.py); reading in advance, saving beside training and what the ranks add up
are those of every trained stage (stages/workers/); rank.py sets all this up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from models.any_to_any import Losses
from stages.train.loader import Joined
from stages.train.phases import learning_rate
from stages.train.profile import Profile
from stages.train.rank import Rank
from stages.train.told import blame, step_metrics, sums_of
from stages.workers.prefetch import Prefetch
from stages.workers.ranks import Sums, give_up, sum_over_ranks
from stages.workers.saver import take_turn

Passes = Sequence[tuple[Joined, Losses]]


def train_worker(config: dict[str, Any]) -> None:
    """One worker, from set-up to the last step. `config`: see `Rank`; and log_every, profile."""
    rank = Rank(config)
    stage, pulse, step = rank.stage, rank.pulse, rank.step
    profile = Profile(config["profile"] and rank.rank == 0, rank.sink)
    with Prefetch(rank.load, step, stage.steps, config["training"].ahead) as ready, profile:
        stops = False
        while step < stage.steps and not stops:
            # 1. Load: what this rank reads at the step, made ready meanwhile.
            pulse.at(step + 1, "loading", partial(rank.rows, step))
            passes = next(ready)

            # 2. Learn. All ranks add up losses, wishes to stop and ended saves, and act alike on what they read there.
            pulse.at(step + 1, "computing")
            seen = learn(rank, step, passes)
            sums = rank.add_up([sums_of(its, made.places, rank.form, rank.counts) for made, its in seen], passes)
            if not np.isfinite(sums.told[0]):
                blame(rank, seen, step + 1, "loss")
                return

            # 3. Change the weights, unless the step is a spike.
            rate = learning_rate(step, stage)
            verdict = rank.change(rate, sums.told[0])
            step += 1
            if verdict.hopeless:
                blame(rank, (), step, "gradient")
                return
            if verdict.why and rank.rank == 0:
                rank.sink.note.remote(f"step {step} was skipped: {verdict.why}")

            # 4. Tell.
            profile.step()
            rank.count(step, sums)
            if rank.rank == 0 and (step % config["log_every"] == 0 or step == stage.steps):
                told = step_metrics(sums.told) | rank.rates(ready.stalled_s) | {"lr": rate, "grad_norm": verdict.norm}
                rank.sink.add.remote(step, told | {"skipped": float(rank.skipped), "tokens_seen": rank.tokens_seen})
                ready.stalled_s = 0.0

            # 5. Save, also where all leave; the files are written beside the next steps.
            stops = sums.stops > 0
            if trouble := save(rank, step, sums, stops):
                give_up(rank.sink, rank.saver, trouble)
                return


def learn(rank: Rank, step: int, passes: Sequence[Joined]) -> Passes:
    """Forward and backward of every pass; divisors are those of the whole global batch, whatever ranks and passes."""
    stage, engine = rank.stage, rank.engine
    own = np.array([[one.weight, one.num_pictures] for one in passes]).sum(0) * rank.counts
    divisors_2 = sum_over_ranks(own, rank.device).clamp(min=1e-6).float()
    torch.manual_seed((stage.seed * 1_000_003 + step) * 4096 + rank.rank)  # dropout
    seen = []
    for number, joined in enumerate(passes):
        if number:
            engine.end_pass()
        batch = joined.batch(rank.form, stage.parts, stage.seed, rank.device)
        seen.append((joined, engine.learn(batch, divisors_2, rank.ranks)))
    return seen


def save(rank: Rank, step: int, sums: Sums, stops: bool) -> str | None:
    """Publish the save that has ended on all ranks, begin the next where it is due; what went wrong, in words."""
    due, last = rank.stage.publishes(step) or stops, step == rank.stage.steps or stops
    if due:
        rank.pulse.at(step, "saving")
    return take_turn(rank.saver, due, last, sums.saves_ended, lambda: rank.begin_to_save(step))
