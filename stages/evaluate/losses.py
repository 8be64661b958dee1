"""The loss suite: held-out documents, beside predictors fitted on the training packs. Not a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.vocabulary import TEXT, VISION
from stages.base import Job, Row
from stages.evaluate.subject import CAPTION, Pair, Subject, held_out_rows, pair_documents, text_document

if TYPE_CHECKING:
    from stages.evaluate.evaluate import Evals
    from stages.evaluate.heldout_loss import Heldout

_NAMES = {TEXT: "text", VISION: "vision", CAPTION: "caption"}


def losses(stage: Evals, job: Job, subject: Subject, pairs: Sequence[Pair]) -> Iterator[Row]:
    """A row for each document and modality; sums beside the baselines."""
    from stages.evaluate.baselines import Bigram, unigram
    from stages.evaluate.heldout_loss import likelihoods

    texts = held_out_rows(job, "texts", ("text",), stage.max_documents)
    documents = [one for pair in pairs[: stage.max_documents] for one in pair_documents(pair, subject)]
    documents += [text_document(row, subject) for row in texts]
    if not documents:
        return
    frequencies = unigram(job.reader("packs"), subject.form)
    bigram = Bigram(job.reader("packs"), subject.form, frequencies)
    totals = {kind: np.zeros(4) for kind in _NAMES}
    for one, nats in zip(documents, likelihoods(subject.model, documents), strict=True):
        for kind, name in _NAMES.items():
            chosen = one.measured == kind
            if not chosen.any():
                continue
            tokens = one.tokens[chosen]
            after = bigram.nats(tokens).sum() if kind != VISION else 0.0
            own = np.array([nats[chosen].sum(), frequencies[tokens].sum(), after, chosen.sum()])
            totals[kind] += own
            said = f"{int(own[3])} tokens, unigram {own[1] / own[3]:.4f}"
            yield subject.row(f"heldout/{name}", one.key, one.prompt, said, "nats per token", own[0] / own[3])
    for kind, (nats, plain, after, count) in totals.items():
        if count:
            name = _NAMES[kind]
            job.summary({f"heldout/{name}_loss": nats / count, f"heldout/{name}_unigram": plain / count})
            if kind != VISION:
                job.summary({f"heldout/{name}_bigram": after / count})
    if subject.form.latent_size:
        drawn = [one for one in documents if one.document.latents and not (one.measured == CAPTION).any()]
        yield from _noise(job, subject, drawn)


def _noise(job: Job, subject: Subject, documents: Sequence[Heldout]) -> Iterator[Row]:
    from stages.evaluate.baselines import LinearNoise
    from stages.evaluate.heldout_loss import noise_errors

    line = LinearNoise(job.reader("packs"), subject.form)
    found: list[tuple[float, float]] = []
    for one, errors, batches in noise_errors(subject.model, documents):
        plain = []
        for batch in batches:
            assert batch.clean_PC is not None and batch.noise_PC is not None and batch.step_P is not None
            kept = float(subject.model.kept[batch.step_P[0]])
            plain.append(line.error(batch.clean_PC.numpy(), batch.noise_PC.numpy(), kept))
        found.append((float(np.mean(errors)), float(np.mean(plain))))
        said = f"{len(errors)} levels, line {found[-1][1]:.4f}"
        yield subject.row("heldout/noise", one.key, one.prompt, said, "mean squared error", found[-1][0])
    if found:
        own, plain = np.mean(found, axis=0)
        job.summary({"heldout/noise_mse": float(own), "heldout/noise_line": float(plain)})
