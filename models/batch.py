"""What the model gets: places of documents as tensors. Legend: T places, S of them of scales, P of latents, Q of
features, N pictures of latents, C numbers of a latent, F of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.layout import Format
from models.places import NO_GROUP, Places
from models.recipe import Parts


@dataclass(kw_only=True)
class Batch:
    """Documents joined end to end, as tensors of one device. What a recipe does not have is empty."""

    lengths: list[int]
    tokens_T: Tensor  # noqa: N815
    targets_T: Tensor  # noqa: N815
    weights_T: Tensor  # noqa: N815
    positions_TA: Tensor  # noqa: N815
    """(T), or (T, 3)."""
    groups_T: Tensor | None = None  # noqa: N815
    scale_at_S: Tensor | None = None  # noqa: N815
    codes_SN: Tensor | None = None  # noqa: N815
    roles_SN: Tensor | None = None  # noqa: N815
    """Both as in models/places.py: codes that a place of a scale shows, and their shares or slots."""
    scales_S2: Tensor | None = None  # noqa: N815
    latent_at_P: Tensor | None = None  # noqa: N815
    clean_PC: Tensor | None = None  # noqa: N815
    """Latents, of mean 0 and deviation 1."""
    noise_PC: Tensor | None = None  # noqa: N815
    step_P: Tensor | None = None  # noqa: N815
    """Noise step of each place, 0 almost clean; one for all places of a picture."""
    pictures_P: Tensor | None = None  # noqa: N815
    latent_grids: list[tuple[int, int, int]] | None = None
    feature_at_Q: Tensor | None = None  # noqa: N815
    features_QF: Tensor | None = None  # noqa: N815


def no_vectors(size: int) -> NDArray[np.float32]:
    """(0, size)."""
    return np.zeros((0, size), np.float32)


def drawn_noise(
    made: Places, size: int, parts: Parts, seeds: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noise (P, C) and noise step (P) of every picture, each drawn from its own seed alone.

    The step is uniform; of a picture that text follows, uniform below `max_noise_before_text` (Transfusion).
    """
    noise, steps = [no_vectors(size)], [np.zeros(0, np.int64)]
    for grid, before_text, seed in zip(made.latent_grids, made.text_after, seeds, strict=True):
        draws = np.random.default_rng(list(seed))
        highest = parts.max_noise_before_text if before_text else parts.noise_steps
        count = int(np.prod(grid))
        steps.append(np.full(count, draws.integers(highest)))
        noise.append(draws.standard_normal((count, size), np.float32))
    return np.concatenate(noise), np.concatenate(steps)


def batch_of(
    made: Places,
    form: Format,
    parts: Parts,
    device: torch.device | str = "cpu",
    *,
    latents_PC: NDArray[np.floating] | None = None,
    features_QF: NDArray[np.floating] | None = None,
    noise_PC: NDArray[np.float32] | None = None,
    step_P: NDArray[np.int64] | None = None,
) -> Batch:
    """Tensors on the device; latents are brought to mean 0 and deviation 1 here."""

    def tensor(values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    batch = Batch(
        lengths=made.lengths,
        tokens_T=tensor(made.tokens),
        targets_T=tensor(made.targets),
        weights_T=tensor(made.weights),
        positions_TA=tensor(made.positions if parts.positions == "scales" else made.line),
    )
    if (made.groups != NO_GROUP).any():
        batch.groups_T = tensor(made.groups)
    if len(made.scale_at):
        batch.scale_at_S, batch.codes_SN = tensor(made.scale_at), tensor(made.codes)
        batch.roles_SN, batch.scales_S2 = tensor(made.roles), tensor(made.scales)
    if len(made.latent_at):
        assert latents_PC is not None and noise_PC is not None and step_P is not None
        clean = (latents_PC.astype(np.float32) - np.float32(form.latent_mean)) / np.float32(form.latent_std)
        batch.latent_at_P, batch.pictures_P = tensor(made.latent_at), tensor(made.pictures)
        batch.clean_PC, batch.noise_PC, batch.step_P = tensor(clean), tensor(noise_PC), tensor(step_P)
        batch.latent_grids = made.latent_grids
    if len(made.feature_at):
        assert features_QF is not None
        batch.feature_at_Q, batch.features_QF = tensor(made.feature_at), tensor(features_QF.astype(np.float32))
    return batch
