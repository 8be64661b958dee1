"""The data of a step: a pure function of it under any world size, in phases, in passes, and made ready in advance."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.types import UserError
from models.flops import TrunkShape
from models.layout import Format
from models.recipe import Parts
from stages.train.loader import Joined, Loader
from stages.train.phases import learning_rate, stretch_at, stretches
from stages.train.stream import Stream
from stages.train.train import Model
from stages.workers.prefetch import Prefetch
from tests.stages import test_pack_recipes as recipes
from tests.stages.fake_job import FakeJob, FakeReader, table_of

SHAPE = TrunkShape(layers=1, width=16, heads=2, kv_heads=1, ffn=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Packs of latents, which have noise."""
    folder = tmp_path_factory.mktemp("latents")
    rows, _ = recipes.pack(folder, recipes.tables("latents"), recipes.stage(recipes.LAYOUTS["latents"]))
    return table_of(rows, recipes.Packs.schema, "packs")


def loader_of(packs: pa.Table, global_batch: int = 8) -> Loader:
    return Loader(FakeReader(packs), global_batch, 3, Format.from_json(packs["format"][0].as_py()), Parts())


def stored(sizes: dict[str, int], shuffled: int = 0) -> FakeReader:
    """Packs of phases of so many packs, in any order of rows."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    at = np.random.default_rng(shuffled).permutation(len(names))
    return FakeReader(pa.table({"order": pa.array(at), "phase": [names[order] for order in at]}))


PHASES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=4)


@given(PHASES, st.sampled_from([1, 2, 4]), st.integers(0, 2**31), st.integers(0, 99))
def test_a_phase_reads_its_own_packs_each_once_an_epoch_under_any_world_size(given, batch, seed, shuffled) -> None:
    sizes = {f"phase {n}": size for n, (size, _) in enumerate(given)}
    phases = {f"phase {n}": steps for n, (_, steps) in enumerate(given)}
    reader = stored(sizes, shuffled)
    stream, steps = Stream(reader, batch, seed, phases), sum(phases.values())
    assert [stream.phase(step) for step in range(steps)] == [n for n, count in phases.items() for _ in range(count)]
    names, orders = (reader.table[name].to_pylist() for name in ("phase", "order"))
    first = 0
    for name, count in phases.items():
        read = [row for step in range(first, first + count) for row in stream.rows(step)]
        assert {names[row] for row in read} <= {name}
        epochs = [read[at : at + sizes[name]] for at in range(0, len(read), sizes[name])]
        assert all(max(Counter(epoch).values()) == 1 for epoch in epochs)
        assert all(len(epoch) == sizes[name] for epoch in epochs[:-1])
        assert [orders[row] for row in epochs[0]] == sorted(orders[row] for row in epochs[0]) if epochs else True
        first += count
    for world in [n for n in (1, 2, 4) if batch % n == 0]:
        for step in range(steps):
            ranks = [stream.rows(step)[rank::world] for rank in range(world)]
            assert (
                sorted(row for one in ranks for row in one) == sorted(stream.rows(step))
                and len({len(one) for one in ranks}) == 1
            )


def test_one_phase_over_all_packs_begins_as_the_stream_without_phases_and_is_keyed_by_its_name() -> None:
    reader = stored({"all": 40})
    plain, named = Stream(reader, 4, 0), Stream(reader, 4, 0, {"all": 30})
    assert [plain.rows(step) for step in range(10)] == [named.rows(step) for step in range(10)]
    assert plain.rows(10) != named.rows(10) and plain.phase(3) == "" and named.phase(3) == "all"


@pytest.mark.parametrize("phases", [{"small": 3, "huge": 2}, {"large": 3, "small": 2}, {"small": 5}])
def test_other_phases_than_the_packs_have_are_one_sentence(phases: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"the packs have small, large: give each of these its steps, in this order"):
        Stream(stored({"small": 3, "large": 4}), 4, 0, phases)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"phases": {"a": 3, "b": 4}}, r"add up to 7 steps, model.steps is 10: set model.steps=7"),
        ({"phases": {"a": 12, "b": -2}}, r"b=-2: give steps, 0 leaves"),
        ({"phase_learning_rates": {"a": 1.0}}, r"model.phases has none"),
        ({"phases": {"a": 5, "b": 5}, "phase_learning_rates": {"a": 1.0}}, r"has a, model.phases has a, b"),
        ({"phases": {"a": 10}, "phase_learning_rates": {"a": 0.0}}, r"phase_learning_rates.a is 0.0"),
    ],
)
def test_phases_that_do_not_fit_are_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Model(trunk=SHAPE, parts=Parts(), steps=10, **settings)


def test_a_model_without_phases_keeps_its_key() -> None:
    assert not {"phases", "phase_learning_rates"} & Model(trunk=SHAPE, parts=Parts(), steps=10).settings().keys()
    assert {"phases"} <= Model(trunk=SHAPE, parts=Parts(), steps=10, phases={"a": 10}).settings().keys()


def test_phases_with_rates_have_a_schedule_each_by_hand() -> None:
    stage = {"trunk": SHAPE, "parts": Parts(), "steps": 20, "warmup": 2, "phases": {"a": 12, "left out": 0, "b": 8}}
    rates = {"a": 1.0, "left out": 5.0, "b": 0.1}
    own = Model(**stage, phase_learning_rates=rates, schedule="linear")
    found = [learning_rate(step, own) for step in (0, 1, 2, 7, 12, 13, 14, 17)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.05, 0.1, 0.1, 0.05])
    constant = Model(**stage, phase_learning_rates=rates, schedule="constant")
    assert [learning_rate(step, constant) for step in (5, 11, 14, 19)] == [1.0, 1.0, 0.1, 0.1]
    one = Model(**stage, learning_rate=1.0, schedule="linear")
    assert learning_rate(11, one) == pytest.approx(0.5)
    assert stretch_at(99, stretches(own.phases, 20)).phase == "b"


def test_a_run_reads_its_phases_from_the_packs_and_refuses_others_before_it_starts(tmp_path: Path) -> None:
    phases = {"small": recipes.Phase(size=16, video=False), "large": recipes.Phase(size=32)}
    rows, _ = recipes.pack(tmp_path, recipes.tables("features", sizes=(16, 32)), recipes.stage(phases=phases))
    packs = table_of(rows, recipes.Packs.schema, "packs")
    stream = Stream(FakeReader(packs), 2, 0, {"small": 9, "large": 9})
    read = [packs["phase"][row].as_py() for step in range(18) for row in stream.rows(step)]
    assert read == ["small"] * 18 + ["large"] * 18
    with pytest.raises(UserError, match="the packs have small, large"):
        list(Model(trunk=SHAPE, parts=Parts(), steps=5, phases={"tiny": 5}).run(FakeJob(tmp_path, {"packs": packs})))


def batches(passes: list[Joined], form: Format) -> dict[str, list]:
    """What the model would be given, all passes end to end."""
    made = [one.batch(form, Parts(), 7) for one in passes]
    names = ("tokens_T", "targets_T", "weights_T", "clean_PC", "noise_PC", "step_P")
    return {n: [v for one in made if getattr(one, n) is not None for v in getattr(one, n).tolist()] for n in names}


@pytest.mark.parametrize("packs_per_pass", [1, 2, 3, 4, 9])
def test_passes_hold_what_one_pass_holds_with_the_same_noise(pictures: pa.Table, packs_per_pass: int) -> None:
    loader = loader_of(pictures)
    (whole,) = loader.passes(5, 1, 2)
    parts = loader.passes(5, 1, 2, packs_per_pass)
    assert len(parts) == -(-4 // packs_per_pass) == len(loader.passes(5, 0, 2, packs_per_pass))
    assert [n for one in parts for n in one.packs] == whole.packs and set(whole.packs) == {0, 1, 2, 3}
    assert [o for one in parts for o in one.origins] == whole.origins
    assert [n for one in parts for n in one.places.lengths] == whole.places.lengths
    assert sum(one.weight for one in parts) == pytest.approx(whole.weight)
    assert sum(one.num_pictures for one in parts) == whole.num_pictures > 0
    assert batches(parts, loader.form) == batches([whole], loader.form)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_what_is_made_ready_is_what_a_plain_loop_reads(pictures: pa.Table, ahead: int) -> None:
    loader = loader_of(pictures)
    with Prefetch(lambda step: loader.passes(step, 0, 2, 2), 3, 9, ahead) as ready:
        found = [batches(passes, loader.form) for passes in ready]
    assert found == [batches(loader.passes(step, 0, 2, 2), loader.form) for step in range(3, 9)]


def test_what_fails_in_the_thread_is_raised_where_its_step_is_asked_for() -> None:
    def load(step: int) -> int:
        if step == 2:
            raise ValueError("step 2 has no packs")
        return step

    with Prefetch(load, 0, 5, 4) as ready:
        assert (next(ready), next(ready)) == (0, 1)
        with pytest.raises(ValueError, match="step 2"):
            next(ready)
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_leaving_ends_the_thread_after_the_step_it_is_at_and_begins_no_other() -> None:
    begun: list[int] = []

    def load(step: int) -> int:
        begun.append(step)
        time.sleep(0.05)
        return step

    with Prefetch(load, 0, 1000, 4) as ready:
        assert next(ready) == 0
    assert len(begun) <= 3 and list(ready) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_it_says_how_long_the_caller_waited() -> None:
    gate = threading.Event()
    threading.Timer(0.1, gate.set).start()
    with Prefetch(lambda step: gate.wait(5), 0, 3) as ready:
        next(ready)
        assert 0.05 < ready.stalled_s < 5
        ready.stalled_s = 0.0
        assert list(ready) == [True, True] and ready.stalled_s < 0.05
