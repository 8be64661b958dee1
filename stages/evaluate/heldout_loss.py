"""Loss on samples never trained on, by modality. Not a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.any_to_any import AnyToAny
from models.batch import Batch, batch_of
from models.layout import Document
from models.places import Places, places, tokens_of

_PLACES_AT_ONCE = 4096
NOISE_LEVELS = 8
"""At which each picture is looked at, evenly over the steps of the schedule."""


@dataclass(frozen=True, kw_only=True)
class Heldout:
    """One held-out document, and which of its tokens are measured."""

    key: bytes
    prompt: str
    document: Document
    tokens: NDArray[np.int64]
    """(L) as they are said."""
    measured: NDArray[np.int8]
    """(L) TEXT where a caption's or text's own tokens stand, VISION at visual codes, -1 elsewhere (marks, size)."""


def likelihoods(model: AnyToAny, documents: Sequence[Heldout]) -> Iterator[NDArray[np.float64]]:
    """(L) nats of each token of each document given what comes before it; 0 where nothing predicts it."""
    for group in _groups(documents):
        made = places(
            tokens_of([one.document for one in group]), span=model.parts.span, interleave=model.form.layout.interleave
        )
        nll_T = _losses(model, made, group)
        nats = np.zeros(sum(len(one.tokens) for one in group))
        said = made.said >= 0
        nats[made.said[said]] = nll_T[said]
        yield from np.split(nats, np.cumsum([len(one.tokens) for one in group])[:-1])


@torch.no_grad()
def _losses(model: AnyToAny, made: Places, group: Sequence[Heldout]) -> NDArray[np.float64]:
    """(T) with every target weighing 1."""
    batch = _batch(model, made, group, step=0)
    batch.weights_T = torch.from_numpy((made.said >= 0).astype(np.float32))
    return model(batch, torch.ones(2)).nll_T.double().numpy()


@torch.no_grad()
def noise_errors(model: AnyToAny, documents: Sequence[Heldout]) -> Iterator[tuple[Heldout, list[float], list[Batch]]]:
    """Of each document with one picture of latents: mean squared errors of the noise, and what was shown, by level."""
    for one in documents:
        made = places(tokens_of([one.document]), span=model.parts.span, interleave=model.form.layout.interleave)
        steps = [int((level + 0.5) * model.parts.noise_steps / NOISE_LEVELS) for level in range(NOISE_LEVELS)]
        batches = [_batch(model, made, [one], step) for step in steps]
        yield one, [float(model(batch, torch.ones(2)).squared_N[0]) for batch in batches], batches


def _batch(model: AnyToAny, made: Places, group: Sequence[Heldout], step: int) -> Batch:
    """With noise that follows from the documents' keys, at this step."""
    form, size = model.form, model.form.latent_size
    latents = [part for one in group for part in one.document.latents]
    features = [part for one in group for part in one.document.features]
    draws = np.random.default_rng([step, *(int.from_bytes(one.key[:8], "big") for one in group)])
    return batch_of(
        made,
        form,
        model.parts,
        latents_PC=np.concatenate(latents) if latents else None,
        features_QF=np.concatenate(features) if features else None,
        noise_PC=draws.standard_normal((len(made.latent_at), size), np.float32),
        step_P=np.full(len(made.latent_at), step),
    )


def _groups(documents: Sequence[Heldout]) -> Iterator[list[Heldout]]:
    batch: list[Heldout] = []
    for document in [*documents, None]:
        if batch and (document is None or sum(len(one.tokens) for one in [*batch, document]) > _PLACES_AT_ONCE):
            yield batch
            batch = []
        if document is not None:
            batch.append(document)
