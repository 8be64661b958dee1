"""Training: the data is a function of the step, and under any number of ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.types import UserError
from models.flops import TrunkShape
from models.layout import Format, Layout
from models.recipe import Parts
from models.vocabulary import TEXT, VISION, Vocabulary
from stages.pack import Packs
from stages.train.loader import Loader, joined, sums_by_modality
from stages.train.stream import permuted
from stages.train.train import Model
from tests.stages.fake_job import FakeJob, FakeReader, table_of
from tests.stages.test_pack import EMU3, tables

SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
STAGE = Model(
    trunk=SHAPE, parts=Parts(), steps=10, global_batch=4, learning_rate=5e-3, warmup=3, checkpoint_every=4, dropout=0.0
)


def loader_of(packs: pa.Table, global_batch: int) -> Loader:
    return Loader(FakeReader(packs), global_batch, 0, Format.from_json(packs["format"][0].as_py()), Parts())


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    stage = Packs(layout=EMU3, trunk=SHAPE, flops_per_pack=1e8, max_tokens=900, max_text_tokens=100)
    given = tables([(5 + i % 40, 2 + i % 5) for i in range(90)], [60] * 9)
    rows = list(stage.run(FakeJob(tmp_path_factory.mktemp("packs"), given)))
    return table_of(rows, stage.schema, "packs")


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 100])
def test_permutation_is_one_to_one_and_keyed(size: int) -> None:
    one, two = ([permuted(i, size, key) for i in range(size)] for key in (b"a", b"b"))
    assert sorted(one) == sorted(two) == list(range(size))
    assert size < 17 or one != two


def test_every_epoch_reads_every_pack_once_in_another_order(packs: pa.Table) -> None:
    loader = loader_of(packs, 1)
    count = packs.num_rows
    epochs = [[loader.rows(epoch * count + step)[0] for step in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [packs["order"][row].as_py() for row in epochs[0]] == list(range(count))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_sees_the_same_packs_under_any_world_size(packs: pa.Table, world: int) -> None:
    loader = loader_of(packs, 4)
    (whole,) = loader.passes(7, 0, 1)
    parts = [part for rank in range(world) for part in loader.passes(7, rank, world)]
    assert sum(sum(part.places.lengths) for part in parts) == sum(whole.places.lengths)
    assert sum(part.weight for part in parts) == pytest.approx(whole.weight)


def test_targets_never_cross_documents(packs: pa.Table) -> None:
    form = Format.from_json(packs["format"][0].as_py())
    made = joined(packs.slice(0, 3), form, 64.0, range(3)).places
    assert sum(made.lengths) == len(made.tokens)
    ends = np.cumsum(made.lengths) - 1
    inside = np.delete(np.arange(len(made.tokens)), ends)
    assert (made.weights[ends] == 0).all() and (made.weights[inside] > 0).all()
    assert (made.targets[inside] == made.tokens[inside + 1]).all() and (made.said[ends] == -1).all()


def test_sums_by_modality() -> None:
    vocabulary = Vocabulary.compact(10, 4)
    targets = np.array([0, 10, 18, 19, 5])
    sums = list(sums_by_modality(np.arange(5.0), targets, np.array([1, 1, 0.5, 0.5, 0], np.float32), vocabulary))
    assert sums[2 * TEXT : 2 * TEXT + 2] == [0.0, 1.0] and sums[2 * VISION : 2 * VISION + 2] == [5.0, 2.0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_published_trunk_is_loaded_as_it_was(tied: bool, tmp_path: Path) -> None:
    """Also where embedding and head are one matrix, which safetensors holds once."""
    import torch

    from models.any_to_any import AnyToAny, load_model, save_model
    from models.trunk import TrunkConfig
    from stages.train.engine import parameter_groups

    form = Format(layout=Layout(vision="codes"), vocabulary=Vocabulary.compact(20, 12))
    config = TrunkConfig(shape=SHAPE, vocabulary_size=form.vocabulary.size, tied=tied, qk_norm="layer", norm="after")
    model = AnyToAny(config, Parts(), form).initialise(1)
    save_model(model, tmp_path, 3)
    again, step = load_model(tmp_path)
    assert again.trunk.config == config and (again.form, step) == (form, 3)
    assert (again.trunk.head.weight is again.trunk.embedding.weight) == tied
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    decayed = {id(p) for p in parameter_groups(model, STAGE)[0]["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in decayed and "norm" in name} == set()


def test_training_can_begin_with_a_published_decoder(tmp_path: Path) -> None:
    """Blocks and rows of text are the published ones; what the recipe adds is drawn from the seed."""
    import torch
    import transformers

    from stages.train.build import first_model

    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    form = Format(layout=Layout(vision="codes"), vocabulary=Vocabulary.compact(40, 12))
    given = {"qkv_bias": True, "qk_norm": "none", "norm_eps": 1e-6, "init": str(tmp_path)}
    model = first_model(dataclasses.replace(STAGE, **given), form, None).eval()
    ids = torch.arange(40)[None]
    from models.attention import DocumentAttention

    with torch.no_grad():
        ours = model.logits(model.trunk(model.embed(ids), torch.arange(40)[None], DocumentAttention([40])))
        torch.testing.assert_close(ours[..., :40], theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert model.trunk.embedding.weight.shape[0] == form.vocabulary.size == 60


def test_training_can_begin_with_a_checkpoint_of_ours_which_is_in_the_key_by_what_it_holds(
    tmp_path: Path, packs: pa.Table
) -> None:
    import torch

    from models.any_to_any import save_model
    from stages.train.build import first_model

    form = Format.from_json(packs["format"][0].as_py())
    made = first_model(dataclasses.replace(STAGE, seed=1), form, None)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        save_model(made, tmp_path / name, 3)
    here, there = (dataclasses.replace(STAGE, init=str(tmp_path / name)) for name in ("here", "there"))
    assert here.settings() == there.settings() != STAGE.settings() and STAGE.settings()["init"] is None
    begun = first_model(here, form, None).state_dict()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in made.state_dict().items())
    wrong = dataclasses.replace(here, qk_norm="layer")
    with pytest.raises(UserError, match=r"model.init: .* has qk_norm=rms and this trunk qk_norm=layer"):
        list(wrong.run(FakeJob(tmp_path, {"packs": packs})))
    (tmp_path / "there" / "model.safetensors").write_bytes(b"other")
    assert here.settings() != there.settings()


def test_a_document_that_is_not_finite_names_its_pack_and_no_other(packs: pa.Table) -> None:
    (made,) = loader_of(packs, 4).passes(2, 1, 2)
    nll = np.zeros(sum(made.places.lengths))
    from stages.train.loader import guilty_packs

    assert guilty_packs(made, nll, np.zeros(0)) == []
    second = next(n for n, pack in enumerate(made.packs) if pack == 1)
    nll[sum(made.places.lengths[:second])] = np.inf
    assert guilty_packs(made, nll, np.zeros(0)) == [1]
    said = loader_of(packs, 4).described(2, 1, 2, 1)
    row = packs.slice(loader_of(packs, 4).rows(2)[3], 1).to_pylist()[0]
    assert row["key"].hex()[:12] in said and row["parents"][0].hex()[:12] in said and "plait why --row" in said


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_learning_rates_by_hand(schedule: str, middle: float, end: float) -> None:
    from stages.train.phases import learning_rate

    given = {"learning_rate": 1.0, "final_learning_rate": 0.1, "warmup": 4, "steps": 104, "schedule": schedule}
    stage = dataclasses.replace(STAGE, **given)
    assert [learning_rate(step, stage) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(54, stage) == pytest.approx(middle) and learning_rate(104, stage) == pytest.approx(end)


def test_a_pattern_that_fits_nothing_is_one_sentence() -> None:
    from stages.train.build import first_model

    form = Format(layout=Layout(vision="codes"), vocabulary=Vocabulary.compact(40, 12))
    with pytest.raises(UserError, match=r"model.frozen has 'head.\*', which fits no parameter"):
        first_model(dataclasses.replace(STAGE, frozen=("head.*",)), form, None)
