"""How far drawn pictures are from true ones as a whole, by features, named by what sees them: the Frechet distance, and
the kernel distance, which is unbiased where pictures are few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.types import UserError
from stages.evaluate.suite import Evidence, Judged, Question, Suite, Verdict

_SUBSET, _SUBSETS = 1000, 100
"""Of the paper's own code: pictures a draw, and draws."""


@dataclass(frozen=True, kw_only=True)
class PixelFrechet(Suite):
    """Frechet distance (models/inception.py) of pictures seen as 16 x 16 pixels: a cheap look at colours and layout,
    for runs without weights; no FID. Few pictures make it large: compare equal numbers only."""

    name: ClassVar[str] = "pictures_pixels"
    evidence: ClassVar[Evidence] = "features"
    main: ClassVar[str] = "frechet[pixels-16]"
    higher_is_better: ClassVar[bool] = False
    resampled: ClassVar[bool] = False
    kernel: ClassVar[str] = "kernel[pixels-16]"

    reference: str
    """Path of a .npy with the features (N, D) of true pictures, by the judge that sees the drawn ones."""

    def questions(self, prompts: bytes | None) -> Iterator[Question]:
        """A prompt a line, of which COCO's protocol takes 30,000 captions."""
        for line in (prompts or b"").decode().splitlines():
            if line.strip():
                yield Question(prompt=line.strip(), task="pictures")

    def verdict(self, question: Question, evidence: Mapping[str, Any]) -> Verdict:
        """Nothing of a picture alone; the features go beside it."""
        return Verdict(score=math.nan)

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """The distance of all; none below two pictures."""
        from models.inception import frechet_distance

        seen = [one.features for one in sorted(judged, key=lambda one: (one.question, one.index))]
        features = [one for one in seen if one is not None]
        if len(features) < 2:
            return {}
        true, drawn = self._reference(), np.stack(features)
        if true.shape[1] != drawn.shape[1]:
            raise UserError(
                f"{self.reference} has {true.shape[1]} features, drawn pictures {drawn.shape[1]}: use one judge"
            )
        return {self.main: frechet_distance(true, drawn), self.kernel: kernel_distance(true, drawn)}

    def _reference(self) -> NDArray[np.floating]:
        how = "give a .npy of floats (N, D), N two or more"
        try:
            found = np.load(Path(self.reference).expanduser(), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"features of true pictures cannot be read from {self.reference}: {how}") from error
        if found.ndim != 2 or len(found) < 2:
            raise UserError(f"{self.reference} holds an array of shape {found.shape}: {how}")
        return found


@dataclass(frozen=True, kw_only=True)
class Fid(PixelFrechet):
    """FID (Heusel et al. 2017, arXiv 1706.08500): the distance of features of FID's own Inception v3."""

    name: ClassVar[str] = "pictures_fid"
    main: ClassVar[str] = "fid"
    kernel: ClassVar[str] = "kid"


def kernel_distance(true_ND: NDArray[np.floating], drawn_ND: NDArray[np.floating]) -> float:
    """KID (Binkowski et al. 2018, arXiv 1801.01401, section 4): the unbiased squared maximum mean discrepancy under the
    kernel (x . y / D + 1)^3, mean over draws of as many of both as there are, 1000 at most. 0 on the average where both
    are of one distribution, so single ones may be below."""
    rng, size = np.random.default_rng(0), min(_SUBSET, len(true_ND), len(drawn_ND))
    draws = 1 if size == len(true_ND) == len(drawn_ND) else _SUBSETS
    found: list[float] = []
    for _ in range(draws):
        x, y = (each[rng.choice(len(each), size, replace=False)].astype(np.float64) for each in (true_ND, drawn_ND))
        within = sum((kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_cubic(x, x), _cubic(y, y)))
        found.append(float(within - 2 * _cubic(x, y).mean()))
    return float(np.mean(found))


def _cubic(x_ND: NDArray[np.float64], y_MD: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3
