"""What is trained of the vision tokenizer on one worker, and one step of it.

Legend: N samples, T frames, H and W pixels; M latents, D numbers each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from models.tokenizers.interface import Painted, VisionTokenizer, build, copy_of, load_tokenizer
from models.tokenizers.quantise import usage
from stages.tokenizer.measure import perceptual

if TYPE_CHECKING:
    from stages.base import Checkpoint, Checkpoints
    from stages.tokenizer.tokenizer import Tokenizer

STATE_FILE = "optimizer.safetensors"
_BETAS = (0.9, 0.99)


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
        """Copies of what a checkpoint holds beside the tokenizer."""
        state = moments(self.optimizer, "tokenizer.")
        if self.judge is not None:
            state |= {f"judge.{name}": tensor for name, tensor in self.judge.state_dict().items()}
            state |= moments(self.judge_optimizer, "moments.judge.")
        return {name: copy_of(tensor) for name, tensor in state.items()}

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
