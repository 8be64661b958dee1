"""What a checkpoint of the model holds, and who takes up what of it:

    model.safetensors, config.json              all that is needed to use the model; rank 0's
    trainer.json                                counts, and what the spike guard remembers; rank 0's
    optimizer-RRRRR-of-WWWWW.safetensors        Adam's moments (bf16: and fp32 weights) of the stretches rank R updates

A tensor `trunk.norm.weight@128.exp_avg` is a flat stretch of a parameter from place 128 on, and the manifest says which
stretches lie in which file, so any number of ranks under any stage of ZeRO finds its own (stages/train/engine.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from models.any_to_any import config_json, save_weights
from models.trunk import CONFIG_FILE, WEIGHTS_FILE
from stages.train.engine import Engine, Fragment
from stages.workers.saver import Write

if TYPE_CHECKING:
    from stages.base import Checkpoint, Checkpoints

TRAINER_FILE = "trainer.json"
USE_FILES = (WEIGHTS_FILE, CONFIG_FILE, TRAINER_FILE)


def copied(engine: Engine, step: int, trainer: Mapping[str, Any]) -> Write:
    """Copy this rank's part; what it gives writes that part, whatever training does meanwhile. A collective call."""
    kinds = engine.saved_kinds
    own = [(f, {kind: f.tensors[kind].detach().to("cpu", copy=True) for kind in kinds}) for f in engine.own()]
    weights = engine.weights()
    config = config_json(engine.model, step) if weights is not None else ""
    name = f"optimizer-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"

    def write(folder: Path) -> dict[str, dict[str, Any]]:
        save_file({f"{f.name}@{f.start}.{kind}": t for f, found in own for kind, t in found.items()}, folder / name)
        if weights is not None:
            save_weights(weights, config, folder)
            (folder / TRAINER_FILE).write_text(json.dumps(trainer))
        return {name: {"holds": {f"{f.name}@{f.start}": [f.start, f.stop] for f, _ in own}}}

    return write


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
