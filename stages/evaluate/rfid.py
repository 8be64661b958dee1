"""FID between true and redrawn frames, where Inception's weights are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.types import UserError


class Rfid:
    """Gathers Inception's features of both sides clip by clip; without weights it gathers nothing."""

    def __init__(self, weights: str | None) -> None:
        from models.inception import load_inception

        try:
            self._inception = load_inception(Path(weights).expanduser()) if weights else None
        except (OSError, ValueError) as error:
            raise UserError(f"evals.inception_weights: {error}") from error
        self._true: list[NDArray[np.float32]] = []
        self._redrawn: list[NDArray[np.float32]] = []

    def add(self, shown_NHWC: NDArray[np.uint8], again_NHWC: NDArray[np.uint8]) -> None:
        """The frames of one clip, and what came back."""
        if self._inception is not None:
            self._true.append(self._inception.features(shown_NHWC))
            self._redrawn.append(self._inception.features(again_NHWC))

    def summary(self) -> dict[str, float]:
        """The distance; empty below two frames, and without weights."""
        from models.inception import frechet_distance

        if sum(map(len, self._true)) < 2:
            return {}
        return {"tokenizer/rfid": frechet_distance(np.concatenate(self._true), np.concatenate(self._redrawn))}
