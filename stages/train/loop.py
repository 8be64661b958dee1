"""The training loop of one worker, top to bottom: set up, resume, then load, learn, tell, save in order.

Ray Train has started the workers and their process group; DeepSpeed ZeRO shards gradients and optimizer.
A checkpoint holds weights and Adam's moments per parameter, whole, as safetensors: it loads under any number of
workers, and nothing in it is a pickle.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.types import UserError
from models.any_to_any import AnyToAny, Losses, load_weights, save_model
from models.hf_layout import initial
from models.layout import Format
from models.places import Places
from models.positions import sections
from models.trunk import TrunkConfig
from stages.train.loader import Joined, Loader, guilty_packs, sums_by_modality, sums_by_scale

if TYPE_CHECKING:
    from stages.base import Checkpoints, Reader
    from stages.pulse import Pulse
    from stages.train.train import Model

MOMENTS_FILE = "optimizer.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BETAS, _EPS = (0.9, 0.95), 1e-8
"""Emu3's betas (baaivision/Emu3, scripts/t2i_sft.sh)."""


def train_worker(config: dict[str, Any]) -> None:
    """One worker, from set-up to the last step. `config`: stage, packs (reader), checkpoints, form (the packs' format),
    code_vectors (the tokenizer's codebook, or None), sink, pulse, log_every."""
    from ray.train.torch import get_device

    stage: Model = config["stage"]
    checkpoints: Checkpoints = config["checkpoints"]
    packs: Reader = config["packs"]
    form: Format = config["form"]
    pulse: Pulse = config["pulse"]
    rank, world, device = dist.get_rank(), dist.get_world_size(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)

    # 1. Model, optimizer, position: fresh, or those of the last checkpoint.
    model = first_model(stage, form, config["code_vectors"]).to(device)
    last = checkpoints.latest()
    moments, step, tokens_seen = None, 0, 0
    if last is not None:
        with checkpoints.fetch(last) as folder:
            load_weights(model, folder)
            moments = load_file(folder / MOMENTS_FILE)
        step, tokens_seen = last.step, int(last.facts["tokens_seen"])
    optimizer = torch.optim.AdamW(parameter_groups(model, stage), lr=stage.learning_rate, betas=_BETAS, eps=_EPS)
    engine = zero_engine(model, optimizer, stage, device)
    set_moments(engine, optimizer, moments, step)

    # 2. Data: a pure function of the step.
    loader = Loader(packs, stage.global_batch, stage.seed, form, stage.parts)
    since_saved = torch.tensor(last.facts.get("unpublished", (0, 0)) if last else (0, 0), dtype=torch.float64)
    # Any rank may hear the wish to stop, and every rank reads it in the same sum: all leave after the same step.
    clock, clock_tokens, stops = time.monotonic(), 0, 0.0

    while step < stage.steps and not stops:
        # 3. Learn. Divisors are those of the whole global batch; DeepSpeed averages over ranks, we want the sum.
        pulse.at(step + 1, "loading", loader.rows(step)[rank::world])
        joined = loader.batch(step, rank, world)
        pulse.at(step + 1, "computing")
        divisors = global_sum([joined.weight, float(joined.num_pictures)], device).clamp(min=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, stage)
        torch.manual_seed((stage.seed * 1_000_003 + step) * 4096 + rank)  # dropout
        losses = engine(joined.batch(form, stage.parts, stage.seed, device), divisors.float())
        engine.backward(losses.total * world)
        engine.step()
        step += 1

        # 4. Tell.
        *totals, stops = global_sums([*sums_of(losses, joined.places, form), pulse.wish()], device)
        if not math.isfinite(totals[0]):
            blame(config["sink"], loader, losses, joined, step, rank, world)
            return
        tokens_seen, clock_tokens = tokens_seen + int(totals[1]), clock_tokens + int(totals[1])
        since_saved += torch.tensor([totals[0], 1.0], dtype=torch.float64)
        if rank == 0 and (step % config["log_every"] == 0 or step == stage.steps):
            now = time.monotonic()
            speed, clock, clock_tokens = clock_tokens / (now - clock), now, 0
            metrics = step_metrics(totals) | {"lr": optimizer.param_groups[0]["lr"], "tokens_per_s": speed}
            config["sink"].add.remote(step, metrics | {"tokens_seen": tokens_seen})

        # 5. Save, also where all leave.
        if stage.publishes(step) or stops:
            facts = facts_of(stage, step, since_saved) | {"tokens_seen": tokens_seen, "packs": len(packs)}
            save(checkpoints, pulse, step, model, facts)
            since_saved.zero_()


def save(checkpoints: Checkpoints, pulse: Pulse, step: int, model: AnyToAny, facts: dict[str, Any]) -> None:
    """Every rank takes part in gathering, rank 0 writes, the others wait for it."""
    pulse.at(step, "exchanging")
    state = gathered(model)
    if dist.get_rank() == 0:
        pulse.at(step, "saving")
        publish(checkpoints, step, state, model, facts)
    dist.barrier()


def facts_of(stage: Model, step: int, since_saved: Tensor) -> dict[str, Any]:
    """Mean loss since the last checkpoint that is published, position in the data; of a checkpoint that is not, as it
    is saved where all leave, also the sum and the number of steps, which the next mean counts too."""
    facts = {"loss": float(since_saved[0] / since_saved[1]), "data_position": step * stage.global_batch}
    return facts if stage.publishes(step) else facts | {"unpublished": since_saved.tolist()}


def sums_of(losses: Losses, made: Places, form: Format) -> list[float]:
    """What `step_metrics` reads: loss, places, nats and tokens of each modality, errors and number of pictures; of a
    recipe with scales also nats and codes of each scale but the first, which has no places of its own."""
    nll_T = losses.nll_T.double().cpu().numpy()
    nats = sums_by_modality(nll_T, made.targets, made.weights, form.vocabulary)
    noise = [float(losses.squared_N.sum()), len(losses.squared_N)]
    scales = sums_by_scale(nll_T, made) if form.layout.vision == "scales" else []
    return [float(losses.total.detach()), sum(made.lengths), *nats, *noise, *scales]


def blame(sink: Any, loader: Loader, losses: Losses, joined: Joined, step: int, rank: int, world: int) -> None:
    """Tell the driver which samples made the loss infinite or no number; every rank takes part, weights are as before.

    A document sees no other, so those at fault are those whose own likelihoods or errors are not finite.
    """
    packs = guilty_packs(joined, losses.nll_T.cpu().numpy(), losses.squared_N.cpu().numpy())
    own = [f"rank {rank}, {loader.described(step - 1, rank, world, pack)}" for pack in packs]
    found: list[list[str]] = [[] for _ in range(world)]
    dist.all_gather_object(found, own)
    named = [one for part in found for one in part]
    everywhere = sum(map(len, found)) == loader.global_batch
    where = "in every pack: the weights are at fault, lower model.learning_rate" if everywhere else "; ".join(named[:3])
    if rank == 0:
        import ray

        ray.get(sink.blame.remote(f"the loss of step {step} is not finite, {where or 'and no sample says why'}"))
    dist.barrier()


def first_model(stage: Model, form: Format, code_vectors: Tensor | None) -> AnyToAny:
    """The model that the settings describe, with its first weights."""
    config = TrunkConfig(
        shape=stage.trunk,
        vocabulary_size=form.vocabulary.size,
        rope_base=stage.rope_base,
        rope_sections=sections(stage.rope_shares, stage.trunk.head_dim // 2),
        qk_norm=stage.qk_norm,
        norm=stage.norm,
        qkv_bias=stage.qkv_bias,
        tied=stage.tied,
        dropout=stage.dropout,
        norm_eps=stage.norm_eps,
    )
    size = 0 if code_vectors is None else code_vectors.shape[1]
    model = AnyToAny(config, stage.parts, form, size).initialise(stage.seed, code_vectors)
    if stage.init:
        initial(model.trunk, stage.init, form.vocabulary.text_size)
    freeze(model, stage.frozen)
    return model


def freeze(model: AnyToAny, patterns: Sequence[str]) -> None:
    """No gradient for parameters whose name fits one of the patterns; each must fit one."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UserError(f"model.frozen has {pattern!r}, which fits no parameter: names are such as {', '.join(list(names)[:3])}")  # fmt: skip  # noqa: E501
        for name in found:
            names[name].requires_grad_(False)


def parameter_groups(model: AnyToAny, stage: Model) -> list[dict[str, Any]]:
    """Matrices and convolutions with weight decay; norms (those of each head have 3 dimensions) and biases without."""
    learnt = trained(model)
    decayed = {name: p.ndim >= 2 and "norm" not in name for name, p in learnt.items()}
    groups = [
        {"params": [p for name, p in learnt.items() if decayed[name] is yes], "weight_decay": weight}
        for yes, weight in ((True, stage.weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def trained(model: AnyToAny) -> dict[str, torch.nn.Parameter]:
    """Parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def learning_rate(step: int, stage: Model) -> float:
    """Linear warm-up to the peak, then by the schedule to `final_learning_rate` at the end."""
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[stage.schedule]
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * share


def zero_engine(model: AnyToAny, optimizer: torch.optim.AdamW, stage: Model, device: torch.device) -> Any:
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
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": stage.clip,
        "zero_optimization": {"stage": stage.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)[0]


def global_sum(values: list[float], device: torch.device) -> Tensor:
    """Sum over ranks, in double precision."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total


def global_sums(values: list[float], device: torch.device) -> list[float]:
    """As `global_sum`, as plain numbers."""
    found: Any = global_sum(values, device).tolist()
    return found


def step_metrics(totals: list[float]) -> dict[str, float]:
    """Weighted loss, plain nats per token of text and of vision, and the mean squared error of noise."""
    loss, _, text, num_text, _, _, vision, num_vision, noise, num_pictures, *scales = totals
    parts = {"loss/text": (text, num_text), "loss/vision": (vision, num_vision), "loss/noise": (noise, num_pictures)}
    parts |= {f"loss/scale_{n:02d}": pair for n, pair in enumerate(zip(scales[::2], scales[1::2], strict=True))}
    return {"loss": loss} | {name: total / count for name, (total, count) in parts.items() if count}


def gathered(model: AnyToAny) -> dict[str, Tensor]:
    """Adam's moments of every trained parameter, whole, gathered from the ranks' shards; a collective call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    whole: dict[str, Tensor] = {}
    for name, parameter in trained(model).items():
        for moment in _MOMENTS:
            tensor: Any = safe_get_full_optimizer_state(parameter, moment)
            whole[f"{name}.{moment}"] = tensor.cpu().contiguous()
    return whole


def set_moments(engine: Any, optimizer: torch.optim.AdamW, moments: dict[str, Tensor] | None, step: int) -> None:
    """Put whole moments into the shards of whatever ranks there are now; zeros where training is fresh.

    Done for a fresh start too: DeepSpeed 0.19 links parameters to optimizer state after the first *group's* first step,
    when the other groups have none yet, and would then never find theirs.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    zero = engine.optimizer
    for shard in zero.single_partition_of_fp32_groups:
        optimizer.state[shard] = {"step": torch.tensor(float(step))} | {m: torch.zeros_like(shard) for m in _MOMENTS}
    zero._lazy_init_hp_params_optimizer_state()
    if moments is None:
        return
    for name, parameter in trained(engine.module).items():
        for moment in _MOMENTS:
            safe_set_full_optimizer_state(parameter, moments[f"{name}.{moment}"].to(parameter.device), moment)


def publish(
    checkpoints: Checkpoints, step: int, moments: dict[str, Tensor], model: AnyToAny, facts: dict[str, Any]
) -> None:
    """Weights, configuration and moments into a folder, and the folder into the bucket."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(model, folder, step)
        save_file(moments, folder / MOMENTS_FILE)
        checkpoints.save(step, folder, facts)
