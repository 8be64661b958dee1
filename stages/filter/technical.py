"""The scorer that needs no weights: technical quality of each picture, 0 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.filter.quality import quality

if TYPE_CHECKING:
    import numpy as np


class Technical:
    """Sharpness, contrast, exposure and noise (stages/filter/quality.py): damage, not beauty."""

    def scores(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """One score per picture (uint8 RGB [H, W, 3])."""
        return [quality(picture) for picture in pictures]
