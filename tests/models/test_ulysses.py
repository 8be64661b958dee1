"""Ranks that share a batch add up to one rank by itself: loss, likelihoods, errors, and the gradient of everything."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.batch import Batch
from models.ulysses import SequenceRanks, Share, heads_of_rank
from tests.models.recipes import NAMES
from tests.models.ulysses_ranks import RANKS, batch_for, cases, main, model_of, results

pytestmark = pytest.mark.slow
CASES = cases()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """What four processes found, by case: each did all cases, so that they start once."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.models.ulysses_ranks"])  # torch is imported once, not four times
    started = [context.Process(target=main, args=(rank, str(folder)), daemon=True) for rank in range(RANKS)]
    for process in started:
        process.start()
    until = time.monotonic() + 120
    for process in started:
        process.join(max(0.0, until - time.monotonic()))
    ended = [process.exitcode for process in started]
    for process in started:
        process.kill()  # ranks that do not all exchange the same wait for ever
    assert ended == [0] * RANKS
    whole: dict[str, dict[str, Tensor]] = {}
    for rank in range(RANKS):
        whole |= torch.load(Path(folder) / f"rank-{rank}.pt")
    return whole


def _close(together: dict[str, Tensor], alone: dict[str, Tensor], tolerance: float) -> None:
    assert together.keys() == alone.keys()
    for name, wanted in alone.items():
        assert together[name].shape == wanted.shape, name
        difference = (together[name] - wanted).norm()
        assert difference <= tolerance * wanted.norm() + 1e-12, (name, float(difference), float(wanted.norm()))


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_share_a_batch_add_up_to_one_by_itself(found: dict[str, dict[str, Tensor]], case: str) -> None:
    model, batch = CASES[case][0]()
    _close(found[case], results(model, batch), 1e-5 if "single" in case else 1e-7)


def _shares(batch: Batch) -> list[Share]:
    made = []
    for rank in range(RANKS):
        ranks = SequenceRanks(None)
        ranks.size, ranks.rank = RANKS, rank
        made.append(ranks.share(batch))
    return made


def test_the_batches_are_the_hard_ones() -> None:
    """Places that the ranks do not divide, pictures that begin on one rank and end on another, ranks without any."""
    assert all(len(batch_for(name, 0).tokens_T) % RANKS for name in NAMES)
    straddling, text = _shares(batch_for("transfusion", 0)), _shares(batch_for("transfusion", 2))
    assert [sum(share.sent) - share.sent[rank] for rank, share in enumerate(straddling)] == [0, 5, 0, 2]
    assert [len(share.batch.latent_grids or ()) for share in straddling] == [1, 2, 1, 2]
    assert [len(share.batch.latent_grids or ()) for share in text] == [0, 0, 0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_two_groups_with_data_of_their_own_add_up_to_one_rank_with_both(
    found: dict[str, dict[str, Tensor]], name: str
) -> None:
    """2 x 2 ranks, divisors of the whole global batch: what the trainer adds up."""
    model = model_of(name)
    first, second = (results(model, batch_for(name, data)) for data in range(2))
    parts = [found[f"{name} {data} by 2"] for data in range(2)]
    alone, together = (
        {n: one[n] + two[n] for n in one if n not in ("nll_T", "squared_N")} for one, two in ((first, second), parts)
    )
    _close(together, alone, 1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 4, 6, 12])
def test_every_rank_gets_the_kv_heads_of_its_query_heads(kv_heads: int, size: int) -> None:
    own, own_kv, times = heads_of_rank(12, kv_heads, size)
    given = torch.arange(kv_heads).repeat_interleave(times).view(size, own_kv)
    used = given.repeat_interleave(own // own_kv, 1).flatten()
    assert torch.equal(used, torch.arange(kv_heads).repeat_interleave(12 // kv_heads))
    assert own_kv == max(1, kv_heads // size) or (kv_heads % size and size % kv_heads)


def test_heads_that_ranks_cannot_share_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="3 ranks cannot share 4 query heads: give a sequence size that divides"):
        heads_of_rank(4, 2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_by_itself_has_the_whole_batch(name: str) -> None:
    batch = batch_for(name, 1)
    share = SequenceRanks(None).share(batch)
    assert torch.equal(share.batch.tokens_T, batch.tokens_T) and share.batch.latent_grids == batch.latent_grids
    if batch.latent_at_P is not None:
        assert share.latent_at_R is not None and torch.equal(share.latent_at_R, batch.latent_at_P)
