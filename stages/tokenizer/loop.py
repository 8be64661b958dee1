"""The tokenizer's training loop of one worker, top to bottom: set up, resume, then load, learn, tell, save in order.

Legend: N samples, T frames, H and W pixels; M latents, D numbers each.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from models.tokenizers.interface import Painted, VisionTokenizer, build, load_tokenizer, to_pixels
from models.tokenizers.quantise import usage
from stages.tokenizer.measure import measure, perceptual
from stages.tokenizer.samples import Samples

if TYPE_CHECKING:
    from stages.base import Checkpoint, Checkpoints
    from stages.tokenizer.tokenizer import Tokenizer
    from stages.workers.pulse import Pulse

STATE_FILE = "optimizer.safetensors"
_BETAS = (0.9, 0.99)


def train_worker(config: dict[str, Any]) -> None:
    """One worker, from set-up to the last step. `config`: stage, clips (reader), checkpoints, sink, pulse,
    log_every."""
    from ray.train.torch import get_device

    stage: Tokenizer = config["stage"]
    checkpoints: Checkpoints = config["checkpoints"]
    pulse: Pulse = config["pulse"]
    rank, world, device = dist.get_rank(), dist.get_world_size(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # with a second one, small kernels wait 20 times longer whenever a core is taken

    # 1. Tokenizer, optimizer, position: fresh, or those of the last checkpoint.
    last = checkpoints.latest()
    learner = Learner(stage, device).restore(checkpoints, last)
    samples = Samples(config["clips"], stage, learner.tokenizer.stride)
    samples.rejected |= {} if last is None else last.facts["rejected"]
    stops = 0.0

    while learner.step < stage.steps and not stops:
        # 2. Load: a pure function of the step. 3. Learn.
        pulse.at(learner.step + 1, "loading", samples.drawn(learner.step, rank, world))
        pixels_NT3HW = to_pixels(torch.from_numpy(samples.batch(learner.step, rank, world)).to(device))
        pulse.at(learner.step + 1, "computing")
        told = learner.learn(pixels_NT3HW, rank, world)

        # 4. Tell. Any rank may hear the wish to stop, and every rank reads it in the same sum: all leave after the same
        # step.
        names = sorted(told)
        totals = torch.tensor([told[name] for name in names] + [pulse.wish()], dtype=torch.float64)
        dist.all_reduce(totals := totals.to(device))
        *means, stops = (totals / world).tolist()
        if not all(map(math.isfinite, means)):
            blame(config["sink"], learner, samples, rank, world)
            return
        if rank == 0 and (learner.step % config["log_every"] == 0 or learner.step == stage.steps):
            config["sink"].add.remote(learner.step, dict(zip(names, means, strict=True)))

        # 5. Save, also where all leave; held-out clips are measured for checkpoints that come in their turn.
        in_turn = learner.step % stage.checkpoint_every == 0 or learner.step == stage.steps
        if in_turn or stops:
            pulse.at(learner.step, "exchanging")
            everything: list[Any] = [None] * world
            dist.all_gather_object(everything, samples.rejected)
            for rejected in everything:
                samples.rejected |= rejected
            if rank == 0:
                pulse.at(learner.step, "saving")
                measured, picture = quality(stage, learner.tokenizer, samples) if in_turn else ({}, b"")
                publish(checkpoints, learner.step, stage, learner.tokenizer, samples, learner.state(), measured)
                if in_turn:
                    config["sink"].show.remote("reconstructions", picture)
            dist.barrier()


def blame(sink: Any, learner: Learner, samples: Samples, rank: int, world: int) -> None:
    """Tell the driver which clips made the error infinite or no number; every rank takes part, nothing is saved."""
    strange = (~learner.error_N.isfinite()).nonzero().flatten().tolist()
    own = [f"rank {rank}, {samples.described([samples.rows[n]])}" for n in strange]
    found: list[list[str]] = [[] for _ in range(world)]
    dist.all_gather_object(found, own)
    named = [one for part in found for one in part]
    everywhere = "in every sample: the weights are at fault, lower tokenizer.learning_rate"
    where = everywhere if len(named) == learner.stage.batch else "; ".join(named[:3])
    if rank == 0:
        import ray

        said = f"the error of step {learner.step} is not finite, {where or 'and no clip says why'}"
        ray.get(sink.blame.remote(said))
    dist.barrier()


class Learner:
    """The tokenizer, what judges it, their optimizers and the position: everything a checkpoint holds."""

    def __init__(self, stage: Tokenizer, device: torch.device) -> None:
        self.stage, self.device, self.step = stage, device, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            self.tokenizer: VisionTokenizer = build(stage.shape)
            self.judge = self._judge()
        self.lpips = perceptual(stage, device)
        self.error_N = torch.zeros(0)
        """Mean absolute error of each sample of the last step."""
        self._phase = -1

    def restore(self, checkpoints: Checkpoints, last: Checkpoint | None) -> Learner:
        """Take up a checkpoint, if there is one: weights, codebook, moments, position."""
        state: dict[str, Tensor] = {}
        if last is not None:
            self.step = last.step
            with checkpoints.fetch(last) as folder:
                self.tokenizer = load_tokenizer(folder)
                state = load_file(folder / STATE_FILE)
        self._enter(self.stage.phase_at(self.step)[0])
        if state and self.step != self.stage.phase_at(self.step)[2]:  # at a phase's first step Adam starts anew
            load_moments(self.optimizer, state, "tokenizer.")
        if state and self.judge is not None:
            prefix = "judge."
            self.judge.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
            load_moments(self.judge_optimizer, state, "moments.judge.")
        return self

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the tokenizer."""
        state = moments(self.optimizer, "tokenizer.")
        if self.judge is not None:
            state |= {f"judge.{name}": tensor for name, tensor in self.judge.state_dict().items()}
            state |= moments(self.judge_optimizer, "moments.judge.")
        return state

    def learn(self, pixels_NT3HW: Tensor, rank: int, world: int) -> dict[str, float]:
        """One step on this rank's samples; what there is to tell, as means over them."""
        stage = self.stage
        number, _, first, last = stage.phase_at(self.step)
        if number != self._phase:
            self._enter(number)
        rate = stage.learning_rate * schedule(self.step - first, last - first)
        draw = stage.seed * 1_000_003 + self.step
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        painted: Painted = self.parallel(pixels_NT3HW, draw, range(rank, stage.batch, world))
        error = l1_loss(painted.pixels, pixels_NT3HW), mse_loss(painted.pixels, pixels_NT3HW)
        self.error_N = (painted.pixels.detach() - pixels_NT3HW).abs().flatten(1).mean(1)
        terms = {"l1": stage.l1 * error[0], "l2": stage.l2 * error[1], **painted.terms}
        if self.lpips is not None and stage.lpips:
            terms["lpips"] = stage.lpips * self.lpips(painted.pixels.flatten(0, 1), pixels_NT3HW.flatten(0, 1)).mean()
        judged = self.judge is not None and self.step >= stage.gan_from
        if judged:
            terms["gan"] = stage.gan * self._fooled(painted.pixels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], stage.clip)
        self.optimizer.step()
        told = {name: float(term.detach()) for name, term in terms.items()}
        if judged:
            told["judge"] = self._judged(painted.pixels.detach(), pixels_NT3HW, rate)
        told |= {"error": float((error[0] + error[1]).detach()), "lr": rate}
        told |= self._learn_codes(painted, draw, world)
        self.step += 1
        return told

    def _learn_codes(self, painted: Painted, draw: int, world: int) -> dict[str, float]:
        """The codebook's own step, from the latents of all workers in the order of the samples."""
        if painted.latents is None or painted.codes is None:
            return {}
        latents, codes = (in_order(part, world).flatten(0, 1) for part in (painted.latents, painted.codes))
        restarted = self.tokenizer.learn(latents, codes, draw)
        share, perplexity = usage(codes.cpu(), self.tokenizer.codebook_size)
        return {"restarted": float(restarted), "usage": share, "perplexity": perplexity}

    def _enter(self, number: int) -> None:
        """Begin a phase: choose what is trained; Adam starts anew."""
        name = self.stage.phase_at(self.step)[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.stage.seed * 1009 + number)
            self.tokenizer.phase(name)
        self.tokenizer.to(self.device).train()
        trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=self.stage.learning_rate, betas=_BETAS)
        self.parallel: nn.Module = self.tokenizer
        if dist.is_initialized() and dist.get_world_size() > 1:
            # buffers are the codebook's: alike at the start, and every rank makes the same ones of them
            self.parallel = nn.parallel.DistributedDataParallel(
                self.tokenizer, forward_sync_buffers=False, find_unused_parameters=True
            )
        self._phase = number

    def _judge(self) -> nn.Module | None:
        if not self.stage.gan:
            return None
        from models.tokenizers.losses import PatchDiscriminator

        judge = PatchDiscriminator().to(self.device)
        self.judge_optimizer = torch.optim.Adam(judge.parameters(), lr=self.stage.learning_rate, betas=(0.5, 0.9))
        return judge

    def _fooled(self, painted: Tensor) -> Tensor:
        """The generator's side of the hinge loss."""
        assert self.judge is not None
        return -self.judge(painted.flatten(0, 1)).mean()

    def _judged(self, painted: Tensor, true: Tensor, rate: float) -> float:
        """One step of the judge: hinge loss of real against painted frames, gradients averaged over the workers."""
        from models.tokenizers.losses import hinge_loss

        assert self.judge is not None
        self.judge_optimizer.param_groups[0]["lr"] = rate
        loss = hinge_loss(self.judge(true.flatten(0, 1)), self.judge(painted.flatten(0, 1)))
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.judge.parameters():
            if dist.is_initialized() and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        self.judge_optimizer.step()
        return float(loss.detach())


def in_order(part: Tensor, world: int) -> Tensor:
    """What all workers have (N / world, ...), in the order of the samples: sample p is the worker p mod `world`'s."""
    if world == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: 50 steps of linear warm-up, then linear to a hundredth."""
    return min(1.0, (step + 1) / 50) * max(1 - step / steps, 0.01)


def moments(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Adam's moments by place and kind; its step counts too."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{place}.{kind}": tensor for place, kinds in state.items() for kind, tensor in kinds.items()}


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor], prefix: str) -> None:
    """The inverse of `moments`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        if name.startswith(prefix):
            place, kind = name[len(prefix) :].split(".")
            state.setdefault(int(place), {})[kind] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def quality(stage: Tokenizer, tokenizer: VisionTokenizer, samples: Samples) -> tuple[dict[str, Any], bytes]:
    """What is measured on held-out clips, and a picture of reconstructions (PNG)."""
    tokenizer.eval()
    found = measure(tokenizer, samples, perceptual(stage, next(tokenizer.parameters()).device))
    tokenizer.train()
    return found


def publish(
    checkpoints: Checkpoints,
    step: int,
    stage: Tokenizer,
    tokenizer: VisionTokenizer,
    samples: Samples,
    state: Mapping[str, Tensor],
    measured: Mapping[str, Any],
) -> None:
    """Save, with what was measured."""
    facts: dict[str, Any] = {
        **measured,
        "kind": stage.shape.kind,
        "codebook_size": tokenizer.codebook_size,
        "clips": len(samples.seen),
        "heldout_clips": len(samples.unseen),
        "digest": tokenizer.digest(),
        "rejected": samples.rejected,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / STATE_FILE)
        checkpoints.save(step, folder, json.loads(json.dumps(facts)))
