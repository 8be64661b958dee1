"""A CLIP of transformers: pictures and texts as unit embeddings that can be compared. Not a stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from models.weights import pretrained
from stages import weights

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH = 64


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
