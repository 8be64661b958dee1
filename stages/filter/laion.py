"""LAION aesthetics: a linear head on CLIP's picture embedding, about 1 to 10; people like what is above 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infra.types import UserError
from stages.clip_model import Clip

if TYPE_CHECKING:
    import numpy as np
    import torch

HEAD = ("head.safetensors", "head.pth")


class Laion:
    """CLIP ViT-L/14 (any CLIP of transformers) and a chain of linear layers, as LAION publishes them.

    The first predictor is one layer, the improved one (sac+logos+ava1) five without anything between them. The head is
    `head.safetensors` or `head.pth` in the folder of the CLIP, or a file of its own.
    """

    def __init__(self, place: str, head: str | None = None) -> None:
        self._clip = Clip(place)
        self._layers = _layers(_head(place, head))

    def embedded(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit embeddings, float32 [N, D]."""
        return self._clip.embedded(pictures)

    def scored(self, embeddings: np.ndarray) -> list[float]:
        """One score per unit embedding [N, D]."""
        import torch

        found = torch.from_numpy(embeddings)
        for weight, bias in self._layers:
            found = found @ weight.T + bias
        return found.flatten().tolist()


def _head(place: str, head: str | None) -> Path:
    choices = [Path(head).expanduser()] if head else [Path(place).expanduser() / name for name in HEAD]
    found = next((path for path in choices if path.is_file()), None)
    if found is None:
        raise UserError(
            f"the aesthetic head is not at {' or '.join(map(str, choices))}: give scores.weights.laion_head=FILE"
        )
    return found


def _layers(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each layer, in order of the layers' numbers."""
    import torch
    from safetensors.torch import load_file

    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    names = sorted(
        {name.rpartition(".")[0] for name in state},
        key=lambda name: [int(part) for part in name.split(".") if part.isdigit()],
    )
    return [(state[_dot(n, "weight")].float(), state[_dot(n, "bias")].float()) for n in names]


def _dot(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
