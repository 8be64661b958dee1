"""The format of packs: the layout, with what the extracted data brought to it. Not a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.types import UserError
from models.layout import Format
from models.vocabulary import EMU3, Vocabulary
from stages.base import Job, Row

if TYPE_CHECKING:
    from models.raster import TextTokenizer
    from stages.pack import Packs


def format_of(stage: Packs, job: Job, text: TextTokenizer) -> Format:
    """The layout with what the data brought: vocabulary, sizes of vectors."""
    makers: set[tuple[str, int]] = set()
    kinds: set[str] = set()
    sums, feature_size = np.zeros(3), 0
    latent_size = 0
    for batch in job.reader("indices").scan(
        ["tokenizer", "codebook_size", "grids", "latents", "features", "feature_grid", "held_out"]
    ):
        for row in batch.to_pylist():
            makers.add((row["tokenizer"], row["codebook_size"]))
            kinds.add(_kind(row))
            if row["features"] is not None:
                feature_size = len(row["features"]) // (2 * int(np.prod(row["feature_grid"])))
            if row["latents"] is not None:
                vectors = np.frombuffer(row["latents"], "<f2").astype(np.float64)
                latent_size = len(vectors) // sum(int(np.prod(grid)) for grid in row["grids"])
                sums += 0 if row["held_out"] else [len(vectors), vectors.sum(), np.square(vectors).sum()]
    _refuse(stage, kinds, makers, feature_size)
    maker, codebook_size = next(iter(makers), ("", 0))
    digests = {"text_digest": text.digest, "vision_digest": maker}  # type: ignore[attr-defined]
    vocabulary = _vocabulary(stage.vocabulary, text, codebook_size, digests)
    mean = sums[1] / sums[0] if sums[0] else 0.0
    std = float(np.sqrt(sums[2] / sums[0] - mean**2)) if sums[0] else 1.0
    return Format(
        layout=stage.layout,
        vocabulary=vocabulary,
        latent_size=latent_size,
        latent_mean=float(f"{mean:.2g}"),  # rounded: one more clip must not move every pack
        latent_std=float(f"{std:.2g}") or 1.0,
        feature_size=feature_size,
    )


def _refuse(stage: Packs, kinds: set[str], makers: set[tuple[str, int]], feature_size: int) -> None:
    if len(makers) > 1:
        raise UserError(
            f"indices hold codes of {len(makers)} tokenizers; make them anew with plait run --force --only indices"
        )
    if kinds - {stage.layout.vision}:
        raise UserError(
            f"indices hold {kinds.pop()}, packs.layout.vision is {stage.layout.vision}: choose recipe and tokenizer"
            " together, as in recipe=nextflow tokenizer=nextflow-tiny"
        )
    if stage.layout.features and makers and not feature_size:
        raise UserError(
            "packs.layout.features wants features of an understanding encoder, indices have none: set"
            " indices.features=PATH of a SigLIP, or indices.features=classical"
        )


def _kind(row: Row) -> str:
    if row["latents"] is not None:
        return "latents"
    return "codes" if len(row["grids"]) == 1 else "scales"


def _vocabulary(kind: str, text: Any, codebook_size: int, digests: Mapping[str, str]) -> Vocabulary:
    if kind == "compact":
        return Vocabulary.compact(text.size, codebook_size, **digests)
    if text.size > EMU3.text_size or codebook_size != EMU3.codebook_size:
        raise UserError(
            f"packs.vocabulary=emu3 has {EMU3.text_size} text ids and {EMU3.codebook_size} codes, the tokenizers have"
            f" {text.size} and {codebook_size}: set packs.vocabulary=compact"
        )
    return replace(EMU3, **digests)
