"""The model that the settings describe, before the first step."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from infra.types import UserError
from models.any_to_any import AnyToAny
from models.grow import start_from
from models.layout import Format
from models.positions import sections
from models.trunk import TrunkConfig

if TYPE_CHECKING:
    from stages.train.train import Model


def trunk_config(stage: Model, form: Format) -> TrunkConfig:
    """The decoder that the settings describe, for the vocabulary of the packs."""
    return TrunkConfig(
        shape=stage.trunk,
        vocabulary_size=form.vocabulary.size,
        rope_base=stage.rope_base,
        rope_sections=sections(stage.rope_shares, stage.trunk.head_dim // 2),
        qk_norm=stage.qk_norm,
        norm=stage.norm,
        qkv_bias=stage.qkv_bias,
        tied=stage.tied,
        dropout=stage.dropout,
        norm_eps=stage.norm_eps,
    )


def first_model(stage: Model, form: Format, code_vectors: Tensor | None) -> AnyToAny:
    """The model that the settings describe, with its first weights."""
    model = model_to_fill(stage, form, code_vectors).initialise(stage.seed, code_vectors)
    if stage.init:
        start_from(model, stage.init)
    return model


def model_to_fill(stage: Model, form: Format, code_vectors: Tensor | None) -> AnyToAny:
    """The same, for the weights of a checkpoint: whoever goes on needs no first ones, nor what `init` named."""
    size = 0 if code_vectors is None else code_vectors.shape[1]
    model = AnyToAny(trunk_config(stage, form), stage.parts, form, size)
    freeze(model, stage.frozen)
    return model


def freeze(model: AnyToAny, patterns: Sequence[str]) -> None:
    """No gradient for parameters whose name fits one of the patterns; each must fit one."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UserError(f"model.frozen has {pattern!r}, which fits no parameter: names are such as {', '.join(list(names)[:3])}")  # fmt: skip  # noqa: E501
        for name in found:
            names[name].requires_grad_(False)
