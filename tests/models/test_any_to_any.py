"""One model for all recipes: packed is unpacked, nothing leaks, the loss belongs to the samples alone, FLOPs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import flops
from models.any_to_any import AnyToAny, load_model, save_model
from models.attention import DenseAttention, may_see
from models.layout import spans
from tests.models.recipes import KINDS, NAMES, SHAPE, batch_in_double, document_of, model_of, places_of

DIVISORS = torch.tensor([7.0, 3.0], dtype=torch.float64)


def _loss_and_gradients(model: AnyToAny, batches) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(batch, DIVISORS).total
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_have_the_logits_loss_and_gradients_of_each_by_itself(name: str) -> None:
    model = model_of(name)
    documents = [document_of(name, seed, kind) for seed, kind in enumerate(KINDS)]
    seeds = list(range(len(documents)))
    _, packed = batch_in_double(name, documents, seeds)
    alone = [batch_in_double(name, [one], [seed])[1] for one, seed in zip(documents, seeds, strict=True)]
    with torch.no_grad():
        together = model.logits(model.hidden(packed)[0])
        apart = torch.cat([model.logits(model.hidden(batch)[0]) for batch in alone])
        torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
        noise = [model.hidden(batch)[1] for batch in alone]
        if any(x is not None for x in noise):
            torch.testing.assert_close(model.hidden(packed)[1], torch.cat([x for x in noise if x is not None]))
    loss, gradients = _loss_and_gradients(model, [packed])
    split_loss, split = _loss_and_gradients(model, alone)
    assert loss == pytest.approx(split_loss, rel=1e-9)
    assert {name_of for name_of, _ in model.named_parameters()} == set(gradients) == set(split)
    for name_of, gradient in gradients.items():
        torch.testing.assert_close(gradient, split[name_of], rtol=1e-7, atol=1e-9, msg=name_of)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_batch_is_the_sum_over_any_split_of_its_documents_in_any_order(name: str) -> None:
    model = model_of(name)
    kinds = [KINDS[n % 5] for n in range(8)]
    documents = [document_of(name, seed, kind) for seed, kind in enumerate(kinds)]

    def loss(groups: list[list[int]]) -> float:
        batches = [batch_in_double(name, [documents[n] for n in group], group)[1] for group in groups]
        with torch.no_grad():
            return sum(float(model(batch, DIVISORS).total) for batch in batches)

    whole = loss([list(range(8))])
    assert loss([[3, 1], [0, 7, 6], [5], [2, 4]]) == pytest.approx(whole, rel=1e-10)
    assert loss([[7, 6, 5, 4, 3, 2, 1, 0]]) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_the_one_rule_and_no_document_sees_another(name: str) -> None:
    """Whatever stands at a place changes just the places that may see it, by `may_see` over derived groups."""
    model = model_of(name)
    documents = [document_of(name, seed, kind) for seed, kind in enumerate(("two", "film", "text"))]
    made, batch = batch_in_double(name, documents, [1, 2, 3])
    document = torch.repeat_interleave(torch.arange(len(made.lengths)), torch.tensor(made.lengths))
    seen = may_see(document, group_T=torch.from_numpy(made.groups))
    with torch.no_grad():
        attend = DenseAttention(seen)
        x = torch.randn(len(document), SHAPE.width, dtype=torch.float64)
        before = model.trunk(x[None], batch.positions_TA[None], attend)[0]
        dense = model.hidden(batch, attend)[0]
        torch.testing.assert_close(model.hidden(batch)[0], dense, rtol=1e-9, atol=1e-9)
        for place in range(0, len(document), 3):
            other = x.clone()
            other[place] += 1.0
            moved = (model.trunk(other[None], batch.positions_TA[None], attend)[0] - before).abs().amax(1) > 1e-12
            assert torch.equal(moved, seen[:, place]), place


def test_a_finer_scale_never_changes_a_coarser_one_and_a_code_changes_its_whole_next_scale() -> None:
    """Told through the documents: tokens in, logits out."""
    model, one = model_of("nextflow"), document_of("nextflow", 0, "drawn")
    made, batch = batch_in_double("nextflow", [one], [0])
    scale_of = np.full(len(made.tokens), -1)
    scale_of[made.scale_at] = made.scales[:, 0]
    with torch.no_grad():
        before = model.logits(model.hidden(batch)[0])
        for number, segment in enumerate(one.segments):
            if segment.kind != "scale":
                continue
            changed = document_of("nextflow", 0, "drawn")
            changed.shown[number] = changed.shown[number].copy()
            offset = model.form.vocabulary.visual_offset
            changed.shown[number][0] = offset + (changed.shown[number][0] - offset + 1) % 16
            after = model.logits(model.hidden(batch_in_double("nextflow", [changed], [0])[1])[0])
            moved = ((after - before).abs().amax(1) > 1e-12).numpy()
            later = scale_of > segment.scale
            after_picture = np.arange(len(moved)) > made.scale_at.max()
            if segment.scale + 1 < segment.num_scales:
                assert moved[later].all() and not moved[~later & ~after_picture].any()
            else:
                assert not moved.any()


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_a_forward_pass_are_those_that_torch_counts(name: str) -> None:
    """Matrix products of trunk and head within 1 %. torch counts a dense attention as the full square of its kernel
    calls: A is compared through that count, so the pairs that a mask leaves out are told by the mask itself."""
    documents = [document_of(name, seed, kind) for seed, kind in enumerate(KINDS)]
    model, (made, batch) = model_of(name), batch_in_double(name, documents, list(range(5)))
    document = torch.repeat_interleave(torch.arange(len(made.lengths)), torch.tensor(made.lengths))
    pairs = sum(flops.segment_pairs(spans(one.segments)) for one in documents)
    assert pairs == int(may_see(document, group_T=torch.from_numpy(made.groups)).sum())
    square = sum(n * n for n in made.lengths)
    config = model.trunk.config
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x = model.trunk.embedding(batch.tokens_T)
        hidden = model.trunk(x[None], batch.positions_TA[None], DenseAttention(may_see(document)))[0]
        learnt = made.weights > 0
        _ = hidden[torch.from_numpy(learnt)] @ model.trunk.head.weight.T
    told = flops.cost(config.shape, config.vocabulary_size, len(document), len(document) ** 2, int(learnt.sum()))
    assert counter.get_total_flops() == pytest.approx(told.forward, rel=0.01)
    ours = flops.cost(config.shape, config.vocabulary_size, len(document), pairs, int(learnt.sum()))
    assert ours.attention == pytest.approx(told.attention * pairs / len(document) ** 2)
    assert pairs < square


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_model(name: str, tmp_path) -> None:
    model = model_of(name).float()
    save_model(model, tmp_path, 7)
    again, step = load_model(tmp_path)
    assert step == 7 and again.form == model.form and again.parts == model.parts
    _, batch = batch_in_double(name, [document_of(name, 0, "two")], [0])
    model, again = model.double(), again.double()
    with torch.no_grad():
        assert float(model(batch, DIVISORS).total) == pytest.approx(float(again(batch, DIVISORS).total), rel=1e-6)


def test_codes_of_a_next_scale_model_begin_at_the_codebook() -> None:
    """Distances between embeddings of codes are those of the codebook, up to a random turn."""
    model = model_of("nextflow")
    first = model.form.vocabulary.visual_offset
    vectors = torch.randn(16, 5, generator=torch.Generator().manual_seed(5)).double()
    embedded = model.trunk.embedding.weight[first : first + 16]
    gram, wanted = (x @ x.T for x in (embedded.detach(), (vectors - vectors.mean(0))))
    rank = np.linalg.matrix_rank(embedded.detach().numpy(), tol=1e-6)
    assert rank <= 5 and torch.corrcoef(torch.stack([gram.flatten(), wanted.flatten()]))[0, 1] > 0.8


def test_noise_of_a_picture_belongs_to_its_seed_and_text_behind_it_caps_its_step() -> None:
    documents = [document_of("transfusion", 0, "read"), document_of("transfusion", 1, "drawn")]
    made, batch = batch_in_double("transfusion", documents, [3, 4])
    _, swapped = batch_in_double("transfusion", documents[::-1], [4, 3])
    assert made.text_after == [True, False]
    assert torch.equal(batch.noise_PC[:8], swapped.noise_PC[8:]) and torch.equal(batch.step_P[:8], swapped.step_P[8:])
    steps = [int(batch_in_double("transfusion", documents, [n, n])[1].step_P[0]) for n in range(200)]
    free = [int(batch_in_double("transfusion", documents, [n, n])[1].step_P[8]) for n in range(200)]
    assert max(steps) < 500 < max(free) < 1000


def test_weights_without_a_predictor_are_never_counted() -> None:
    for name in NAMES:
        for kind in KINDS:
            one = document_of(name, 0, kind)
            _, _, weights = one.joined()
            assert places_of(name, [one]).weights.sum() == pytest.approx(weights.sum(), rel=1e-6), (name, kind)
            assert replace(one.segments[0]).kind == "text"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_become_ready_in_one_order_whatever_a_batch_has(name: str) -> None:
    """ZeRO-2 fills its buckets in that order and adds them up over ranks place by place: of ranks whose orders differ,
    gradients of different parameters would be added up."""

    def order(kinds: tuple[str, ...]) -> list[str]:
        model, ready = model_of(name), []
        for name_of, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, own=name_of: ready.append(own))
        _, batch = batch_in_double(
            name, [document_of(name, n, kind) for n, kind in enumerate(kinds)], range(len(kinds))
        )
        model(batch, DIVISORS).total.backward()
        return ready

    orders = [order(kinds) for kinds in (("text",), ("drawn",), ("read",), ("two", "film", "text", "read"))]
    assert all(one == orders[0] for one in orders)
    assert len(orders[0]) == len(dict(model_of(name).named_parameters()))
