"""What a step tells: losses by modality and scale, and, where a loss is not finite, whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.any_to_any import Losses
from models.layout import Format
from models.places import Places
from stages.train.loader import Joined, guilty_packs, sums_by_modality, sums_by_scale
from stages.workers.ranks import at_fault, give_up

if TYPE_CHECKING:
    from stages.train.rank import Rank

PLACES, TEXT_COUNT, VISION_COUNT = 1, 3, 7
"""Where these stand in what `sums_of` gives."""


def sums_of(losses: Losses, made: Places, form: Format, counts: bool = True) -> list[float]:
    """What `step_metrics` reads: loss, places, nats and tokens of each modality, errors and number of pictures; of a
    recipe with scales also nats and codes of each scale but the first, which has no places of its own.

    Summed over passes and ranks. Of ranks that share a pack only one `counts`; what is measured is a share of each.
    """
    nll_T = losses.nll_T.double().cpu().numpy()
    nats = list(sums_by_modality(nll_T, made.targets, made.weights, form.vocabulary))
    noise = [float(losses.squared_N.sum()), float(len(losses.squared_N))]
    scales = sums_by_scale(nll_T, made) if form.layout.vision == "scales" else []
    measured = [float(losses.total.detach()), float(sum(made.lengths)), *nats, *noise, *scales]
    return measured if counts else [0.0 if n % 2 else value for n, value in enumerate(measured)]  # counts are the odd


def step_metrics(totals: Sequence[float]) -> dict[str, float]:
    """Weighted loss, plain nats per token of text and of vision, and the mean squared error of noise."""
    loss, _, text, num_text, _, _, vision, num_vision, noise, num_pictures, *scales = totals
    parts = {"loss/text": (text, num_text), "loss/vision": (vision, num_vision), "loss/noise": (noise, num_pictures)}
    parts |= {f"loss/scale_{n:02d}": pair for n, pair in enumerate(zip(scales[::2], scales[1::2], strict=True))}
    return {"loss": loss} | {name: total / count for name, (total, count) in parts.items() if count}


def blame(rank: Rank, seen: Sequence[tuple[Joined, Losses]], step: int, what: str) -> None:
    """Tell the driver which samples made the loss infinite or no number; every rank takes part, weights are as before.

    A document sees no other, so those at fault are those whose own likelihoods or errors are not finite.
    """
    loader, reader = rank.loader, rank.reader
    packs = {
        pack for made, its in seen for pack in guilty_packs(made, its.nll_T.cpu().numpy(), its.squared_N.cpu().numpy())
    }
    own = {
        (reader, pack): f"rank {rank.rank}, {loader.described(step - 1, reader, rank.readers, pack)}" for pack in packs
    }
    everywhere = "in every pack: the weights are at fault, lower model.learning_rate"
    where = at_fault(own, loader.global_batch, everywhere, "and no sample says why")
    give_up(rank.sink, rank.saver, f"the {what} of step {step} is not finite, {where}")
