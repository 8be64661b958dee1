"""Tiny models and random documents of every recipe's kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from models.any_to_any import AnyToAny
from models.batch import Batch, batch_of, drawn_noise
from models.flops import TrunkShape
from models.layout import Document, Format, Layout, Picture, document
from models.places import Places, places, tokens_of
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.text import ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary

SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
TEXT = ByteTokenizer()
PLAIN = Marks(rows="none", frames=False, size=False)
CODES, CODE_SIZE, LATENT, FEATURE = 16, 5, 8, 6
SCALES = ((1, 1), (1, 2), (2, 3), (3, 4))

FORMATS = {
    "emu3": Format(layout=Layout(vision="codes", vision_weight=0.5), vocabulary=Vocabulary.compact(256, CODES)),
    "chameleon": Format(layout=Layout(vision="codes", marks=PLAIN), vocabulary=Vocabulary.compact(256, CODES)),
    "nextflow": Format(
        layout=Layout(vision="scales", marks=PLAIN, scale_alpha=0.9), vocabulary=Vocabulary.compact(256, CODES)
    ),
    "passes": Format(  # next-scale, every grid in four passes
        layout=Layout(vision="scales", marks=PLAIN, interleave=2), vocabulary=Vocabulary.compact(256, CODES)
    ),
    "transfusion": Format(
        layout=Layout(vision="latents", marks=PLAIN),
        vocabulary=Vocabulary.compact(256, 0),
        latent_size=LATENT,
        latent_mean=0.1,
        latent_std=2.0,
    ),
    "janus": Format(
        layout=Layout(vision="codes", marks=PLAIN, features=True, supervise="last"),
        vocabulary=Vocabulary.compact(256, CODES),
        feature_size=FEATURE,
    ),
}
FORMATS["unifluid"] = Format(  # features to read, latents to draw
    layout=Layout(vision="latents", marks=PLAIN, features=True),
    vocabulary=Vocabulary.compact(256, 0),
    latent_size=LATENT,
    feature_size=FEATURE,
)
PARTS = {
    "unifluid": Parts(),
    "emu3": Parts(),
    "chameleon": Parts(z_loss=1e-2),
    "nextflow": Parts(positions="scales", scale_embeddings=True, code_vectors="codebook"),
    "passes": Parts(positions="scales", scale_embeddings=True, code_vectors="codebook"),
    "transfusion": Parts(patches="unet"),
    "janus": Parts(code_head="own"),
}
NAMES = tuple(FORMATS)


def model_of(name: str, seed: int = 0) -> AnyToAny:
    """A small model in double precision, its weights large enough that everything matters."""
    form, parts = FORMATS[name], PARTS[name]
    config = TrunkConfig(
        shape=SHAPE,
        vocabulary_size=form.vocabulary.size,
        rope_base=10_000.0,
        rope_sections=(2, 1, 1) if parts.positions == "scales" else (),
        qk_norm="layer" if name == "chameleon" else "none",
    )
    vectors = torch.randn(CODES, CODE_SIZE, generator=torch.Generator().manual_seed(5))
    made = AnyToAny(config, parts, form, CODE_SIZE).initialise(seed, vectors if form.vocabulary.codebook_size else None)
    for name_of, parameter in made.named_parameters():
        if "norm" not in name_of and parameter.ndim > 1:
            parameter.data.mul_(4)
    return made.double().eval()


def picture_of(name: str, rng: np.random.Generator, *, read: bool = False, film: bool = False) -> Picture:
    """A random picture as this recipe's extraction leaves it; `read`: as it is shown to be described."""
    frames = 2 if film else 1
    form = FORMATS[name]
    grid = (frames, 2, 4)
    if form.layout.features and read:
        vectors = rng.standard_normal((8 * frames, FEATURE)).astype(np.float16)
        return Picture(grids=(grid,), vectors=vectors, features=True)
    if form.layout.vision == "latents":
        return Picture(grids=(grid,), vectors=rng.standard_normal((8 * frames, LATENT)).astype(np.float16))
    if form.layout.vision == "scales":
        grids = tuple((1, *sides) for _ in range(frames) for sides in SCALES)
        count = frames * sum(h * w for h, w in SCALES)
        ids = rng.integers(CODES, size=count)
        shown = np.where(rng.random(count) < 0.5, rng.integers(CODES, size=count), ids)
        return Picture(grids=grids, ids=ids, input_ids=shown)
    return Picture(grids=(grid,), ids=rng.integers(CODES, size=8 * frames))


def document_of(name: str, seed: int, kind: str) -> Document:
    """A random document: drawn, read, film, text, or two (pictures with text between)."""
    rng = np.random.default_rng(seed)
    words = TEXT.encode("".join(map(chr, rng.integers(97, 123, rng.integers(3, 9)))))
    parts = {
        "drawn": lambda: [words, picture_of(name, rng)],
        "read": lambda: [picture_of(name, rng, read=True), words],
        "film": lambda: [words, picture_of(name, rng, film=True)],
        "text": lambda: [words],
        "two": lambda: [words, picture_of(name, rng), words[::-1], picture_of(name, rng)],
    }
    return document(parts[kind](), FORMATS[name], TEXT)


KINDS = ("drawn", "read", "film", "text", "two")


def places_of(name: str, documents: Sequence[Document]) -> Places:
    """Derived places of documents, end to end."""
    return places(tokens_of(documents), interleave=FORMATS[name].layout.interleave)


def batch_in_double(name: str, documents: Sequence[Document], seeds: Sequence[int]) -> tuple[Places, Batch]:
    """The documents as the model gets them; the noise of each follows from its seed alone."""
    form, parts = FORMATS[name], PARTS[name]
    made = places_of(name, documents)
    latents = [part for one in documents for part in one.latents]
    features = [part for one in documents for part in one.features]
    origins = [(seed, n) for seed, one in zip(seeds, documents, strict=True) for n in range(len(one.latents))]
    noise, steps = drawn_noise(made, form.latent_size, parts, origins)
    batch = batch_of(
        made,
        form,
        parts,
        latents_PC=np.concatenate(latents) if latents else None,
        features_QF=np.concatenate(features) if features else None,
        noise_PC=noise,
        step_P=steps,
    )
    for field in ("weights_T", "roles_SN", "clean_PC", "noise_PC", "features_QF"):
        value = getattr(batch, field)
        batch = replace(batch, **{field: value.double() if value is not None and value.is_floating_point() else value})
    return made, batch
