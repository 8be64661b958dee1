"""Loss on samples never trained on, by modality, beside what plain token frequencies would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.attention import DocumentAttention
from models.objectives import linear_cross_entropy
from models.positions import document_positions
from models.trunk import Trunk
from models.vocabulary import TEXT, VISION, Vocabulary
from stages.base import Reader

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Document:
    """One held-out sequence, and which of its tokens are measured."""

    key: bytes
    prompt: str
    tokens: NDArray[np.int64]
    measured: NDArray[np.int8]
    """(T) TEXT where a caption's or text's own tokens stand, VISION at visual codes, -1 elsewhere (marks, size)."""


def likelihoods(trunk: Trunk, documents: Sequence[Document]) -> Iterator[NDArray[np.float64]]:
    """Nats of each token of each document given those before it; 0 for the first."""
    batch: list[Document] = []
    for document in [*documents, None]:
        if batch and (document is None or sum(len(one.tokens) for one in [*batch, document]) > _TOKENS_AT_ONCE):
            yield from _batch_likelihoods(trunk, batch)
            batch = []
        if document is not None:
            batch.append(document)


@torch.no_grad()
def _batch_likelihoods(trunk: Trunk, documents: Sequence[Document]) -> list[NDArray[np.float64]]:
    lengths = [len(one.tokens) for one in documents]
    tokens_T = torch.from_numpy(np.concatenate([one.tokens for one in documents]))
    hidden_BTD = trunk(trunk.embedding(tokens_T)[None], document_positions(lengths)[None], DocumentAttention(lengths))
    weights_T = torch.ones(len(tokens_T))
    _, nll_T = linear_cross_entropy(hidden_BTD[0], trunk.head.weight, tokens_T.roll(-1), weights_T, 1.0)
    shifted = nll_T.roll(1).double().numpy()
    parts = np.split(shifted, np.cumsum(lengths)[:-1])
    for part in parts:
        part[0] = 0.0
    return parts


def unigram(packs: Reader, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """(V) nats of each token under the frequencies of its own modality in the training packs, one added to each count.

    Knowing the modality is a gift to the baseline: the model has to choose among all tokens.
    """
    counts = np.zeros(vocabulary.size)
    for batch in packs.scan(["tokens", "segments"]):
        tokens = batch.column("tokens").values.to_numpy()
        segments = batch.column("segments").values
        in_text = np.repeat(np.asarray(segments.field("kind").to_pylist()) == "text", segments.field("len").to_numpy())
        modality = vocabulary.modality(tokens)
        chosen = tokens[((modality == TEXT) & in_text) | (modality == VISION)]
        counts += np.bincount(chosen, minlength=vocabulary.size)
    nats = np.zeros(vocabulary.size)
    modality = vocabulary.modality(np.arange(vocabulary.size))
    for kind in (TEXT, VISION):
        of_kind = modality == kind
        if of_kind.any():
            smoothed = counts[of_kind] + 1
            nats[of_kind] = -np.log(smoothed / smoothed.sum())
    return nats
