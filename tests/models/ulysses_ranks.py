"""What the processes of test_ulysses.py do: the model over a share of a batch, summed over the ranks of a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.any_to_any import AnyToAny
from models.batch import Batch
from models.ulysses import ALONE, SequenceRanks
from tests.models.recipes import NAMES, batch_in_double, document_of, model_of

RANKS = 4
DIVISORS = torch.tensor([7.0, 3.0], dtype=torch.float64)
DATA = (("text", "drawn", "read", "two"), ("film", "text", "drawn", "read", "drawn"), ("text",) * 9 + ("drawn",))
"""Documents of the batch of each of two data-parallel groups, and of one in which some ranks have text alone."""


def batch_for(name: str, data: int) -> Batch:
    """Of a recipe and a data-parallel group."""
    documents = [document_of(name, 10 * data + n, kind) for n, kind in enumerate(DATA[data])]
    return batch_in_double(name, documents, list(range(len(documents))))[1]


def tiny() -> Batch:
    """A place for each rank but the last, which has two."""
    places = torch.arange(5)
    return Batch(lengths=[3, 2], tokens_T=places + 70, targets_T=places + 71, weights_T=torch.ones(5).double(),
                 positions_TA=torch.tensor([0, 1, 2, 0, 1]))  # fmt: skip


def single(model: AnyToAny, batch: Batch) -> tuple[AnyToAny, Batch]:
    """Both in single precision."""
    floats = {f.name: getattr(batch, f.name) for f in fields(batch)}
    floats = {n: x.float() for n, x in floats.items() if isinstance(x, Tensor) and x.dtype == torch.float64}
    return model.float(), replace(batch, **floats)


def recomputed(model: AnyToAny) -> AnyToAny:
    """Blocks run again in the backward pass, their exchanges too."""
    for block in model.trunk.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def adapters(model: AnyToAny) -> AnyToAny:
    """Only what is not the trunk learns: ranks with text alone have nothing to learn."""
    model.trunk.requires_grad_(False)
    return model


def results(model: AnyToAny, batch: Batch, ranks: SequenceRanks = ALONE) -> dict[str, Tensor]:
    """Loss, its parts and all gradients, of this rank."""
    model.zero_grad()
    losses = model(batch, DIVISORS.to(batch.weights_T.dtype), ranks)
    losses.total.backward()
    found = {"total": losses.total.detach(), "nll_T": losses.nll_T, "squared_N": losses.squared_N}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def cases() -> dict[str, tuple[Callable[[], tuple[AnyToAny, Batch]], int, bool]]:
    """By name: model and batch, how many ranks share it, and whether there are groups with data of their own."""
    made: dict[str, Any] = {}
    for name in NAMES:
        made[f"{name} by 4"] = (lambda name=name: (model_of(name), batch_for(name, 0)), 4, False)
        made[f"{name} by 4, single"] = (lambda name=name: single(model_of(name), batch_for(name, 0)), 4, False)
        for data in range(2):
            made[f"{name} {data} by 2"] = (lambda name=name, d=data: (model_of(name), batch_for(name, d)), 2, True)
        made[f"{name} by 4, mostly text"] = (lambda name=name: (model_of(name), batch_for(name, 2)), 4, False)
        made[f"{name} by 4, again"] = (lambda name=name: (recomputed(model_of(name)), batch_for(name, 1)), 4, False)
        if name not in ("emu3", "chameleon"):  # all that these learn is in the trunk
            made[f"{name} by 4, adapters"] = (
                lambda name=name: (adapters(model_of(name)), batch_for(name, 2)),
                4,
                False,
            )
    made["tiny by 4"] = (lambda: (model_of("emu3"), tiny()), 4, False)
    return made


def main(rank: int, folder: str) -> None:
    """One process: what its groups add up to goes to the folder, from the first rank of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found = {}
    for case, (make, size, of_pair) in cases().items():
        if of_pair and f" {rank // 2} " not in case:
            continue
        group = dist.group.WORLD if size == RANKS else pairs[rank // 2]
        here = results(*make(), SequenceRanks(group))
        for tensor in here.values():
            dist.all_reduce(tensor, group=group)
        found[case] = here
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()
