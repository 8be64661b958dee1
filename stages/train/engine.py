"""DeepSpeed around the model: passes, one update a step, and what this rank holds of the optimizer.

Every stage of ZeRO keeps, for each parameter, a flat stretch of fp32 master weights and Adam's moments on some rank:
0 all of them on every rank, 1 and 2 stretches of one long vector, 3 a stretch of every parameter. A `Fragment` says
which (name, start, stop), so a checkpoint made of fragments loads under any stage and any number of ranks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from models.any_to_any import AnyToAny, Losses
from models.batch import Batch
from models.diffusion import AT_ONCE
from models.ulysses import ALONE, SequenceRanks

if TYPE_CHECKING:
    from stages.base import Training
    from stages.train.train import Model

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
_BETAS, _EPS = (0.9, 0.95), 1e-8
"""Emu3's betas (baaivision/Emu3, scripts/t2i_sft.sh)."""


@dataclass(frozen=True)
class Fragment:
    """A stretch of one parameter that this rank updates; the tensors are views, flat and fp32."""

    name: str
    start: int
    stop: int
    tensors: dict[str, Tensor]
    """`MASTER` and the moments."""


@dataclass(frozen=True)
class Update:
    """What became of a step."""

    norm: float
    """Of the gradient, before clipping; not finite where the gradient is not."""
    applied: bool


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that changes nothing unless `allowed(norm)`: DeepSpeed calls `step` once for each of its flat vectors, and
    for a dry run when it sets up ZeRO-3, which would already decay the weights."""

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, clip: float | None) -> None:
        super().__init__(groups, lr=learning_rate, betas=_BETAS, eps=_EPS)
        self.clip = clip
        """Largest norm, where DeepSpeed leaves clipping to us (ZeRO-0); else None."""
        self.norm: Callable[[], float] | None = None
        self.allowed: Callable[[float], bool] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """An update of what stands in the groups now."""
        held = [p for group in self.param_groups for p in group["params"]]
        if self.allowed is None:
            self.fill(held, 0)
            return
        if self.clip is not None:
            norm = float(clip_grad_norm_(held, self.clip))
        else:
            assert self.norm is not None
            norm = self.norm()
        if self.allowed(norm):
            super().step()

    def fill(self, held: list[Tensor], updates: int) -> None:
        """Moments of zero after so many updates."""
        for vector in held:
            zeros = {moment: torch.zeros_like(vector) for moment in MOMENTS}
            self.state[vector] = {"step": torch.tensor(float(updates))} | zeros


class Engine:
    """The model under DeepSpeed ZeRO, on one rank."""

    def __init__(self, model: AnyToAny, stage: Model, training: Training, device: torch.device, passes: int) -> None:
        # In bf16 DeepSpeed has an optimizer of its own for stages 0 and 1, which shards moments all the same.
        self.zero = max(2, training.zero) if stage.precision == "bf16" else training.zero
        self.model, self._world = model, dist.get_world_size()
        self._stage = stage
        clip = stage.clip if self.zero == 0 else None
        self.optimizer = GuardedAdamW(parameter_groups(model, stage), stage.learning_rate, clip)
        self._engine = _deepspeed(model, self.optimizer, stage, self.zero, device, passes)
        self.optimizer.norm = self._norm

    def learn(self, batch: Batch, divisors_2: Tensor, ranks: SequenceRanks = ALONE) -> Losses:
        """Forward and backward of one pass; the gradient is summed over passes and ranks."""
        losses = self._engine(batch, divisors_2, ranks)
        self._engine.backward(losses.total * self._world, scale_wrt_gas=False)  # DeepSpeed averages over ranks
        return losses

    def end_pass(self) -> None:
        """Behind every pass of a step but the last: DeepSpeed counts them."""
        self._engine.step()

    def update(self, learning_rate: float, allowed: Callable[[float], bool]) -> Update:
        """Behind the last pass: change the weights, if `allowed` says so of the gradient's norm (asked once a step)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        seen: list[tuple[float, bool]] = []

        def judged(norm: float) -> bool:
            if not seen:
                seen.append((norm, allowed(norm)))
            return seen[0][1]

        self.optimizer.allowed = judged
        self._engine.step()
        return Update(*seen[0]) if seen else Update(float("inf"), False)  # DeepSpeed left: the gradient is not finite

    def set_updates(self, updates: int) -> None:
        """Moments of zero, and Adam's count of updates.

        Done for a fresh start too: DeepSpeed 0.19 links parameters to optimizer state after the first *group's* first
        step, when the other groups have none yet, and would then never find theirs.
        """
        self.optimizer.fill(self._vectors(), updates)
        if self.zero in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def updates(self) -> int:
        """Updates so far: steps that were not skipped."""
        return int(self.optimizer.state[self._vectors()[0]]["step"])

    def fragments(self) -> list[Fragment]:
        """What this rank holds."""
        rank = dist.get_rank()
        found = []
        for name, parameter in trained(self.model).items():
            if self.zero == 0:
                own = self.optimizer.state[parameter]
                tensors = {MASTER: parameter.detach()} | {moment: own[moment] for moment in MOMENTS}
                start, stop = 0, parameter.numel()
            elif self.zero == 3:
                own = parameter._z3_optimizer.get_local_fp32_param  # type: ignore[attr-defined]
                tensors = {MASTER: own(parameter)} | {moment: own(parameter, moment) for moment in MOMENTS}
                size = tensors[MASTER].numel()
                start, stop = rank * size, min((rank + 1) * size, parameter.ds_numel)  # type: ignore[attr-defined]
            else:
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is None:
                    continue
                at = mapping.lp_fragment_address
                tensors = {MASTER: mapping.get_hp_fragment()} | {m: mapping.get_hp_fragment(m) for m in MOMENTS}
                start, stop = at.start, at.start + at.numel
            if start < stop:
                flat = {kind: tensor.view(-1)[: stop - start] for kind, tensor in tensors.items()}
                found.append(Fragment(name, start, stop, flat))
        return found

    @property
    def saved_kinds(self) -> tuple[str, ...]:
        """Tensors of a fragment that a checkpoint needs: master weights only where the model's are less exact."""
        return (MASTER, *MOMENTS) if self._stage.precision != "fp32" else MOMENTS

    def own(self) -> list[Fragment]:
        """As `fragments`; what every rank holds alike (ZeRO-0) is dealt out, so that each is in one rank's list."""
        found = self.fragments()
        return found[dist.get_rank() :: self._world] if self.zero == 0 else found

    def weights(self) -> dict[str, Tensor] | None:
        """The whole state of the model on the CPU, on rank 0; a collective call under ZeRO-3."""
        wanted = dist.get_rank() == 0
        found: dict[str, Tensor] = {}
        state = self.model.state_dict()
        for name, parameter in self.model.named_parameters():
            if self.zero == 3:
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    if wanted:
                        found[name] = parameter.detach().to("cpu", copy=True)
            elif wanted:
                found[name] = parameter.detach().to("cpu", copy=True)
        if not wanted:
            return None
        return found | {name: tensor.to("cpu", copy=True) for name, tensor in state.items() if name not in found}

    def _norm(self) -> float:
        return float(self._engine.optimizer._global_grad_norm)

    def _vectors(self) -> list[Tensor]:
        """What the optimizer updates: parameters, or ZeRO's flat vectors."""
        if self.zero == 0:
            return list(trained(self.model).values())
        if self.zero == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return list(self._engine.optimizer.single_partition_of_fp32_groups)


def trained(model: AnyToAny) -> dict[str, torch.nn.Parameter]:
    """Parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_groups(model: AnyToAny, stage: Model) -> list[dict[str, Any]]:
    """Matrices and convolutions with weight decay; norms (those of each head have 3 dimensions) and biases without."""
    learnt = trained(model)
    decayed = {name: p.ndim >= 2 and "norm" not in name for name, p in learnt.items()}
    groups = [
        {"params": [p for name, p in learnt.items() if decayed[name] is yes], "weight_decay": weight}
        for yes, weight in ((True, stage.weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _deepspeed(
    model: AnyToAny, optimizer: GuardedAdamW, stage: Model, zero: int, device: torch.device, passes: int
) -> Any:
    """DeepSpeed's engine around a torch optimizer, quiet, and on CPU without compiling anything.

    DeepSpeed builds its shared-memory all-reduce with g++ at first use on CPU (35 to 50 s); it only does so where its
    table of compatible operators says yes, so the table is emptied. Gloo, which Ray Train has set up, is used instead.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    for part in model.modules():
        if zero == 3 and isinstance(part, AT_ONCE):
            deepspeed.utils.set_z3_leaf_module(part, True)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": 0.0 if zero == 0 else stage.clip,
        "zero_optimization": {"stage": zero, "overlap_comm": device.type == "cuda"},
        "zero_allow_untested_optimizer": True,
    }
    if stage.precision == "bf16":
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)[0]
