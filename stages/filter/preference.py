"""Human preference as CLIP models tuned for it see it (HPSv2.1, MPS, PickScore in the format of transformers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.clip_model import Clip

if TYPE_CHECKING:
    import numpy as np

DIGITS = 4
"""Models are asked about many at once, and their last bits depend on how many: what is kept does not."""


class Preference:
    """100 times the cosine of picture and text, as HPSv2 reports it (about 20 to 35)."""

    def __init__(self, place: str) -> None:
        self._clip = Clip(place)

    def scores(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """One score per picture (uint8 RGB [H, W, 3]) and the text beside it; each text is read once."""
        import numpy as np

        distinct = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        said = np.round(self._clip.texts(list(distinct)), DIGITS)[[distinct[text] for text in texts]]
        seen = np.round(self._clip.embedded(pictures), DIGITS)
        return [round(float(score), DIGITS) for score in 100 * (seen * said).sum(axis=1)]
