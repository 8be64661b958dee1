"""Human preference as CLIP models tuned for it see it (HPSv2.1, MPS, PickScore in the format of transformers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.filter.laion import Clip

if TYPE_CHECKING:
    import numpy as np


class Preference:
    """100 times the cosine of picture and prompt, as HPSv2 reports it (about 20 to 35).

    These models were made to compare pictures of one prompt. Clips are scored before they are captioned, so all get
    the same prompt, and the score says how much the picture looks like what people chose.
    """

    def __init__(self, place: str, prompt: str) -> None:
        self._clip = Clip(place)
        self._prompt = self._clip.text(prompt)

    def embedded(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit embeddings, float32 [N, D]."""
        return self._clip.embedded(pictures)

    def scored(self, embeddings: np.ndarray) -> list[float]:
        """One score per unit embedding [N, D]."""
        return (100 * embeddings @ self._prompt).tolist()
