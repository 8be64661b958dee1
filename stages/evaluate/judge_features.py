"""Features of pictures: of pixels, or of an encoder with weights at a local path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.types import BadRow, UserError
from models.weights import pretrained
from stages import weights
from stages.evaluate.judge import Answer
from stages.evaluate.suite import Evidence

_SIDE = 16


class Pixels:
    """A picture of 16 x 16, averaged down; no weights. Its name stands in the score."""

    name = "pixels-16"
    gives: Evidence = "features"

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """768 numbers, 0 to 1."""
        return [_one(answer) for answer in answers]


class InceptionFeatures:
    """FID's Inception v3 as safetensors (models/inception.py), by path; never with random weights."""

    gives: Evidence = "features"

    def __init__(self, place: str) -> None:
        from models.inception import load_inception

        try:
            self._inception = load_inception(Path(place).expanduser())
        except (OSError, ValueError) as error:
            raise UserError(f"FID needs Inception's weights: {error}") from error
        self.name = f"inception-{weights.named(place)}"

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """2048 numbers."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        try:
            return {"image": self._inception.features(answer.picture()[None])[0], "text": None}
        except BadRow as bad:
            return bad


class ClipFeatures:
    """A CLIP of transformers, by folder: unit embeddings of a picture and of its prompt."""

    gives: Evidence = "features"

    def __init__(self, place: str) -> None:
        from stages.clip_model import Clip
        from stages.evaluate.judge_detector import named_weights, told

        self.name = f"clip-{named_weights(place, 'clip')}"
        with told("clip", place):
            self._clip = Clip(place)

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """Two vectors of one length."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Mapping[str, Any] | BadRow:
        try:
            (image,), (text,) = self._clip.embedded([answer.picture()]), self._clip.texts([answer.question.prompt])
        except BadRow as bad:
            return bad
        return {"image": image, "text": text}


class FrameFeatures:
    """An encoder of transformers, by folder: a vector of every frame of a film.

    Of a CLIP its unit embeddings; of any other model (DINO, DINOv2, ViT) the last hidden state at its first place.
    """

    gives: Evidence = "features"

    def __init__(self, place: str, setting: str) -> None:
        from stages.evaluate.judge_detector import named_weights, told

        self.name = f"frames-{setting}-{named_weights(place, setting)}"
        with told(setting, place):
            self._encode = _clip_of(place) if setting == "clip" else _encoder_of(place)

    def evidence(self, answers: Sequence[Answer]) -> list[Mapping[str, Any] | BadRow]:
        """(T, D)."""
        return [
            BadRow("The answer is no film: this judge looks at frames.")
            if answer.frames is None or not len(answer.frames)
            else {"frames": self._encode(answer.frames)}
            for answer in answers
        ]


def _clip_of(place: str) -> Callable[[Any], Any]:
    from stages.clip_model import Clip

    return Clip(place).embedded


def _encoder_of(place: str) -> Callable[[Any], Any]:
    import torch

    library, device = weights.transformers(), weights.device()
    model = pretrained(library.AutoModel, place).to(device).eval()
    prepare = pretrained(library.AutoImageProcessor, place)

    def encode(frames_THW3: Any) -> Any:
        with torch.inference_mode():
            given = prepare(images=list(frames_THW3), return_tensors="pt")
            found = model(pixel_values=given["pixel_values"].to(device)).last_hidden_state[:, 0]
        return found.float().cpu().numpy()

    return encode


def _one(answer: Answer) -> Mapping[str, Any] | BadRow:
    import cv2

    try:
        small = cv2.resize(answer.picture(), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    except BadRow as bad:
        return bad
    return {"image": np.asarray(small, np.float32).ravel() / 255, "text": None}
