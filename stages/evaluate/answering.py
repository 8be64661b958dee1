"""One batch of answers of one checkpoint: pictures, films or texts. Not a stage."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages import frames
from stages.base import BadRow, Row

if TYPE_CHECKING:
    from models.layout import Part
    from stages.evaluate.subject import Subject

Made = tuple[bytes | None, str]
"""Media and text."""


def answers(subject: Subject, rows: Sequence[Row], how: Mapping[str, Any]) -> list[Made]:
    """The answers to trials that want the same of one checkpoint, drawn as one batch."""
    from models.generate.choosing import Sampling

    names = ("temperature", "top_k", "top_p", "guidance")
    sampling = Sampling(steps=how["noise_steps"], **{name: how[name] for name in names})
    seeds = [seed_of(how["seed"], row["question"], row["index"]) for row in rows]
    if rows[0]["asks"] == "texts":
        return _texts(subject, rows, how, sampling, seeds)
    return _pictures(subject, rows, how, sampling, seeds)


def seed_of(seed: int, question: str, index: int) -> int:
    """Of one answer: the same for every checkpoint, so that two of them can be compared pair by pair."""
    return int.from_bytes(hashlib.sha256(f"{seed} {question} {index}".encode()).digest()[:7], "big")


def _pictures(
    subject: Subject, rows: Sequence[Row], how: Mapping[str, Any], sampling: Any, seeds: Sequence[int]
) -> list[Made]:
    from models.generate.pictures import Asked, pictures

    side = how["pixels"] or rows[0]["pixels"]
    count = how["frames"] if rows[0]["asks"] == "films" else subject.tokenizer.stride[0]
    asked = Asked(grids=subject.tokenizer.grids(count, side, side), negative=how["negative"])
    prompts = [row["prompt"] for row in rows]
    drawn = pictures(subject.model, subject.tokenizer, subject.text, prompts, sampling, seeds, asked)
    if rows[0]["asks"] == "films":
        return [(film(one), "") for one in drawn]
    return [(frames.to_png(one[0]), "") for one in drawn]


def _texts(
    subject: Subject, rows: Sequence[Row], how: Mapping[str, Any], sampling: Any, seeds: Sequence[int]
) -> list[Made]:
    from models.generate.texts import texts

    parts = [_parts(subject, row, how["pixels"] or row["pixels"]) for row in rows]
    said = texts(subject.model, subject.text, parts, sampling, seeds, how["max_tokens"])
    return [(None, one.strip()) for one in said]


def _parts(subject: Subject, row: Row, side: int) -> list[Part]:
    """The picture that is asked about, then the words."""
    words: list[Part] = [subject.text.encode(row["prompt"])] if row["prompt"] else []
    return words if row["given"] is None else [_seen(subject, row["given"], side), *words]


def _seen(subject: Subject, data: bytes, side: int) -> Part:
    """A picture as the model reads it: fitted as clips are, encoded."""
    import torch

    from models.layout import Picture

    if subject.form.layout.features:
        raise BadRow(
            "This recipe reads features of an understanding encoder, which are extracted in training alone: leave out"
            " suites that show pictures."
        )
    fitted_THW3 = frames.prepare(data, "image", 1, 0.0, frames.View(size=side, frames=1)).pictures
    pixels = torch.from_numpy(fitted_THW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    encoded = subject.tokenizer.encode(pixels[None].repeat(1, subject.tokenizer.stride[0], 1, 1, 1))
    ids = None if encoded.ids is None else encoded.ids[0].numpy()
    vectors = None if encoded.latents is None else encoded.latents[0].flatten(0, 2).half().numpy()
    return Picture(grids=encoded.grids, ids=ids, vectors=vectors)


def film(frames_THW3: NDArray[np.uint8], fps: float = 12.0) -> bytes:
    """An animated PNG: nothing is lost, and browsers play it."""
    from PIL import Image

    sink = io.BytesIO()
    first, *others = [Image.fromarray(one) for one in frames_THW3]
    first.save(sink, "PNG", save_all=True, append_images=others, duration=1000 / fps, default_image=False)
    return sink.getvalue()


def shown(media: bytes) -> NDArray[np.uint8]:
    """(T, H, W, 3) of a picture or a film."""
    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(media)) as picture:
        return np.stack([np.asarray(one.convert("RGB")) for one in ImageSequence.Iterator(picture)])
