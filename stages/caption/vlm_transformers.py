"""Captions by a vision language model of transformers in this worker: Qwen2.5-VL and models that work like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.weights import pretrained
from stages import weights
from stages.base import BadRow
from stages.caption.asking import Question, Shown

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 8
"""Clips in one call: 96 pictures of 448 pixels."""


class Local:
    """A model that takes pictures as `pixel_values` and `image_grid_thw`, one placeholder token per merged patch.

    The parts are loaded one by one, since the joint processor of transformers wants torchvision for its films.
    """

    short_side = 448

    def __init__(self, question: Question) -> None:
        library = weights.transformers()
        self._question = question
        self._model: Any = pretrained(library.AutoModelForImageTextToText, question.model, dtype="auto")
        self._model = self._model.to(weights.device()).eval()
        self._tokens = pretrained(library.AutoTokenizer, question.model, padding_side="left")
        self._prepare = pretrained(library.AutoImageProcessor, question.model)

    def captions(self, shown: Sequence[Shown | BadRow]) -> list[str | BadRow]:
        """One text per clip, eight clips a call."""
        good = [one for one in shown if not isinstance(one, BadRow)]
        said: list[str | BadRow] = []
        for start in range(0, len(good), _AT_ONCE):
            said += self._asked([one.pictures for one in good[start : start + _AT_ONCE]])
        answers = iter(said)
        return [one if isinstance(one, BadRow) else next(answers) for one in shown]

    def _asked(self, clips: Sequence[Sequence[np.ndarray]]) -> list[str | BadRow]:
        import torch

        given = self._given(clips)
        warm = self._question.temperature > 0
        with torch.inference_mode():
            output = self._model.generate(
                **given,
                max_new_tokens=self._question.max_tokens,
                do_sample=warm,
                temperature=self._question.temperature if warm else None,
                top_p=None,
                top_k=None,
            )
        texts = self._tokens.batch_decode(output[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        plain = [" ".join(text.split()) for text in texts]
        return [text or BadRow("The model gave an empty caption for this clip.") for text in plain]

    def _given(self, clips: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """Token ids (padded on the left) and patches of all pictures, in order."""
        pictures = self._prepare(images=[one for clip in clips for one in clip], return_tensors="pt")
        merged = int(self._prepare.merge_size) ** 2
        counts = iter((pictures["image_grid_thw"].prod(dim=1) // merged).tolist())
        place = self._tokens.convert_ids_to_tokens(self._model.config.image_token_id)
        prompts = [self._prompt(len(clip), place, counts) for clip in clips]
        words = self._tokens(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        kinds = (words["input_ids"] == self._model.config.image_token_id).int()
        return {name: value.to(self._model.device) for name, value in {**words, **pictures}.items()} | {
            "mm_token_type_ids": kinds.to(self._model.device)
        }

    def _prompt(self, num_pictures: int, place: str, counts: Any) -> str:
        """The chat with one placeholder per merged patch of each picture."""
        content = [{"type": "image"}] * num_pictures + [{"type": "text", "text": self._question.prompt}]
        chat = self._tokens.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        first, *others = chat.split(place)
        return first + "".join(place * next(counts) + part for part in others)
