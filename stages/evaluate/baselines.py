"""What the model must beat: predictors fitted on the training packs alone. Not a stage."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from models.layout import KINDS, Format
from models.vocabulary import TEXT, VISION
from stages.base import Reader

_NOTHING = -1


def unigram(packs: Reader, form: Format) -> NDArray[np.float64]:
    """(V) nats of each token under the frequencies of its own modality in the training packs, one added to each count.

    Knowing the modality is a gift to the baseline: the model has to choose among all tokens.
    """
    vocabulary = form.vocabulary
    counts = np.zeros(vocabulary.size)
    for batch in packs.scan(["tokens", "segments"]):
        tokens = batch.column("tokens").values.to_numpy()
        modality = vocabulary.modality(tokens)
        chosen = tokens[((modality == TEXT) & (_kinds(batch) == KINDS.index("text"))) | (modality == VISION)]
        counts += np.bincount(chosen, minlength=vocabulary.size)
    nats = np.zeros(vocabulary.size)
    modality = vocabulary.modality(np.arange(vocabulary.size))
    for kind in (TEXT, VISION):
        of_kind = modality == kind
        if of_kind.any():
            smoothed = counts[of_kind] + 1
            nats[of_kind] = -np.log(smoothed / smoothed.sum())
    return nats


class Bigram:
    """Nats of a text token after the one before it: Witten-Bell smoothing towards the unigram (Chen and Goodman 1998,
    section 2.5), fitted on the texts and captions of the training packs."""

    def __init__(self, packs: Reader, form: Format, unigram_nats: NDArray[np.float64]) -> None:
        self._unigram = unigram_nats
        pairs: Counter[tuple[int, int]] = Counter()
        vocabulary = form.vocabulary
        for batch in packs.scan(["tokens", "segments"]):
            tokens = batch.column("tokens").values.to_numpy()
            inside = (_kinds(batch) == KINDS.index("text")) & (vocabulary.modality(tokens) == TEXT)
            both = inside[:-1] & inside[1:]
            pairs.update(zip(tokens[:-1][both].tolist(), tokens[1:][both].tolist(), strict=True))
        self._pairs = pairs
        self._seen: Counter[int] = Counter()
        self._distinct: Counter[int] = Counter()
        for (before, _), count in pairs.items():
            self._seen[before] += count
            self._distinct[before] += 1

    def nats(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """(T) of each token of a text; the first by its frequency alone."""
        found = self._unigram[tokens].copy()
        for place in range(1, len(tokens)):
            before, now = int(tokens[place - 1]), int(tokens[place])
            seen, distinct = self._seen[before], self._distinct[before]
            if seen:
                share = (self._pairs[before, now] + distinct * np.exp(-self._unigram[now])) / (seen + distinct)
                found[place] = -np.log(share)
        return found


class LinearNoise:
    """Noise guessed from each number of a latent alone, as well as a line can: the mean predictor at full noise.

    With x = sqrt(k) z + sqrt(1 - k) e and z of mean m and variance v: e = sqrt(1 - k) (x - sqrt(k) m) / (k v + 1 - k).
    """

    def __init__(self, packs: Reader, form: Format) -> None:
        sums = np.zeros((2, max(1, form.latent_size)))
        count = 0
        for batch in packs.scan(["latents"]):
            for data in batch.column("latents").to_pylist():
                if data is not None:
                    latents = np.frombuffer(data, "<f2").reshape(-1, form.latent_size).astype(np.float64)
                    latents = (latents - form.latent_mean) / form.latent_std
                    sums += [latents.sum(0), np.square(latents).sum(0)]
                    count += len(latents)
        self.mean_C = sums[0] / max(1, count)
        self.variance_C = sums[1] / max(1, count) - self.mean_C**2

    def error(self, clean_PC: NDArray, noise_PC: NDArray, kept: float) -> float:
        """Mean squared error of the guess, of one picture at one level."""
        shown = np.sqrt(kept) * clean_PC + np.sqrt(1 - kept) * noise_PC
        guess = np.sqrt(1 - kept) * (shown - np.sqrt(kept) * self.mean_C) / (kept * self.variance_C + 1 - kept)
        return float(np.square(guess - noise_PC).mean())


def _kinds(batch) -> NDArray[np.int64]:
    """(L) kind of each token of a batch of packs."""
    segments = batch.column("segments").values
    return np.repeat(segments.field("kind").to_numpy(), segments.field("len").to_numpy())
