"""LAION aesthetics: a linear head on CLIP's picture embedding, about 1 to 10; people like what is above 5."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.types import UserError
from models.weights import pretrained
from stages import weights

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH = 64
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


class Clip:
    """A CLIP of transformers, for pictures and short texts."""

    def __init__(self, place: str) -> None:
        library = weights.transformers()
        self.device = weights.device()
        self.model = pretrained(library.CLIPModel, place).to(self.device).eval()
        self.prepare = pretrained(library.AutoImageProcessor, place)
        self.place = place

    def embedded(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit embeddings of pictures (uint8 RGB [H, W, 3]), float32 [N, D], many at once."""
        import numpy as np
        import torch

        parts: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                given = self.prepare(images=list(pictures[start : start + BATCH]), return_tensors="pt")
                output = self.model.get_image_features(pixel_values=given["pixel_values"].to(self.device))
                parts.append(_unit(output).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def texts(self, said: Sequence[str]) -> np.ndarray:
        """Unit embeddings of texts (their beginnings, where they are longer than the model reads), float32 [N, D]."""
        import numpy as np
        import torch

        longest = self.model.config.text_config.max_position_embeddings
        parts: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(said), BATCH):
                part = list(said[start : start + BATCH])
                given = self.tokens(part, return_tensors="pt", padding=True, truncation=True, max_length=longest)
                ids, mask = given["input_ids"].to(self.device), given["attention_mask"].to(self.device)
                parts.append(_unit(self.model.get_text_features(input_ids=ids, attention_mask=mask)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    @cached_property
    def tokens(self) -> Any:
        """The tokenizer that lies beside the model."""
        return pretrained(weights.transformers().AutoTokenizer, self.place)


def _unit(output: Any) -> torch.Tensor:
    """The embedding that the library gives (alone, or in an output with more), of length 1."""
    found = output if hasattr(output, "norm") else output.pooler_output
    return (found / found.norm(dim=-1, keepdim=True)).float()


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
