"""Packs of every kind of picture, of mixtures, sources and phases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.types import UserError
from models import flops
from models.any_to_any import AnyToAny
from models.layout import KINDS, Format, Layout
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.codes import packed
from models.trunk import TrunkConfig
from models.vocabulary import Vocabulary
from stages.extract import Indices, InterleavedIndices
from stages.pack import MixedPacks, Packs, Phase
from stages.pack_documents import MIXED
from stages.pack_samples import UNSEEN
from stages.train.loader import Loader, joined
from tests.stages.fake_job import FakeJob, FakeReader, key_of, table_of
from tests.stages.test_pack import SHAPE, TEXTS

PLAIN = Marks(rows="none", frames=False, size=False)
SCALES = [[1, 1, 1], [1, 2, 2], [1, 4, 4]]
CODES = Layout(vision="codes", marks=PLAIN)
LAYOUTS = {
    "scales": Layout(vision="scales", marks=PLAIN, scale_alpha=0.9),
    "passes": Layout(vision="scales", marks=PLAIN, interleave=2),
    "latents": Layout(vision="latents", marks=PLAIN),
    "features": Layout(vision="codes", marks=PLAIN, features=True, supervise="last"),
}
PARTS = {
    "scales": Parts(positions="scales", scale_embeddings=True),
    "passes": Parts(positions="scales", scale_embeddings=True),
    "latents": Parts(),
    "features": Parts(code_head="own"),
}


def tables(kind: str, pairs: int = 60, texts: int = 10, sizes: tuple[int, ...] = (32,)) -> dict[str, pa.Table]:
    rng = np.random.default_rng(0)
    captions, indices = [], []
    for i in range(pairs):
        film = i % 6 == 5
        base = {"parents": [key_of("clip", i)], "held_out": False, "label": f"{'films' if film else 'stills'}/{i}"}
        captions.append(base | {"text": "c" * int(rng.integers(3, 30))})
        for size in sizes:
            frames, side = (2 if film else 1), size // 8
            count = frames * side * side
            row = base | {"grids": [[frames, side, side]], "codebook_size": 32, "tokenizer": "t", "size": size}
            row |= {"num_frames": frames, "fps": 4.0 if film else None, "height": size, "width": size}
            if kind == "latents":
                row |= {"codebook_size": 0, "latents": rng.normal(1, 2, (count, 8)).astype("<f2").tobytes()}
            elif kind in ("scales", "passes"):
                count = frames * 21
                ids, shown = (packed(rng.integers(32, size=count), 32) for _ in range(2))
                row |= {"grids": SCALES * frames, "ids": ids, "input_ids": shown}
            else:
                features = rng.normal(size=(count, 6)).astype("<f2").tobytes()
                row |= {"ids": packed(rng.integers(32, size=count), 32), "features": features,
                        "feature_grid": [frames, side, side]}  # fmt: skip
            indices.append(row)
    words = [{"text": "t" * int(n), "held_out": False} for n in rng.integers(5, 60, texts)]
    found = {"captions": (captions, TEXTS), "indices": (indices, Indices.schema), "texts": (words, TEXTS)}
    return {name: table_of(rows, schema, name) for name, (rows, schema) in found.items()}


def stage(layout: Layout = CODES, **kwargs) -> Packs:
    given = {"layout": layout, "trunk": SHAPE, "flops_per_pack": 3e8, "max_tokens": 900, "max_text_tokens": 100}
    return Packs(**given | {"group_one_in": 64} | kwargs)


def pack(tmp_path: Path, made: dict[str, pa.Table], packer: Packs) -> tuple[list[dict], FakeJob]:
    job = FakeJob(tmp_path, made)
    return sorted(packer.run(job), key=lambda row: row["order"]), job


@pytest.mark.parametrize("kind", LAYOUTS)
def test_packs_of_every_kind_hold_all_samples_and_the_model_learns_from_them(kind: str, tmp_path: Path) -> None:
    made, packer = tables(kind), stage(LAYOUTS[kind])
    rows, _ = pack(tmp_path, made, packer)
    parents = Counter(parent for row in rows for parent in row["parents"])
    assert set(parents) == {key for table in made.values() for key in table["key"].to_pylist()}
    assert max(parents.values()) == 1
    form = Format.from_json(rows[0]["format"])
    table = table_of(rows, Packs.schema, "packs")
    whole = joined(table, form, 64.0, range(len(rows)))
    assert sum(whole.places.lengths) == sum(row["num_places"] for row in rows)
    assert whole.weight == pytest.approx(sum(row["loss_weight"] for row in rows), rel=1e-6)
    assert whole.num_pictures == sum(row["num_pictures"] for row in rows)
    for number, row in enumerate(rows):
        one = joined(table.slice(number, 1), form, 64.0, [number])
        groups, document = one.places.groups, np.repeat(np.arange(len(one.places.lengths)), one.places.lengths)
        same = (document[:, None] == document) & ((groups[:, None] == groups) & (groups[:, None] >= 0))
        seen = same | (
            (document[:, None] == document) & (np.arange(len(document))[:, None] >= np.arange(len(document)))
        )
        spent = flops.cost(
            SHAPE, form.vocabulary.size, len(document), int(seen.sum()), int((one.places.weights > 0).sum())
        )
        assert row["flops"] == pytest.approx(spent.train), "the cost is that of the mask the model runs"
    config = TrunkConfig(shape=SHAPE, vocabulary_size=form.vocabulary.size,
                         rope_sections=(2, 1, 1) if kind in ("scales", "passes") else ())  # fmt: skip
    import torch

    model = AnyToAny(config, PARTS[kind], form, 4).initialise(0)
    losses = model(whole.batch(form, PARTS[kind], 0), torch.tensor([whole.weight, max(1.0, whole.num_pictures)]))
    assert torch.isfinite(losses.total) and len(losses.squared_N) == whole.num_pictures
    if kind == "latents":
        assert (form.latent_size, form.latent_mean, form.latent_std) == (8, 1.0, 2.0)


def test_noise_is_drawn_from_the_place_in_the_stream_whatever_the_world_size(tmp_path: Path) -> None:
    rows, _ = pack(tmp_path, tables("latents"), stage(LAYOUTS["latents"]))
    form, table = Format.from_json(rows[0]["format"]), table_of(rows, Packs.schema, "packs")
    whole = joined(table.slice(0, 4), form, 64.0, range(4)).batch(form, Parts(), 7)
    halves = [joined(table.take([r, r + 2]), form, 64.0, [r, r + 2]).batch(form, Parts(), 7) for r in (0, 1)]
    assert whole.noise_PC is not None
    found = sorted(row for half in halves for row in half.noise_PC.tolist())
    assert found == sorted(whole.noise_PC.tolist())
    later = joined(table.slice(0, 4), form, 64.0, range(4, 8)).batch(form, Parts(), 7)
    assert not np.allclose(later.noise_PC, whole.noise_PC)


def kinds_of(rows: list[dict]) -> Counter:
    """Documents by task: what comes first behind BOS and its caption decides."""
    found: Counter = Counter()
    for row in rows:
        for document in range(row["segments"][-1]["document"] + 1):
            kinds = [KINDS[s["kind"]] for s in row["segments"] if s["document"] == document]
            pictures = [place for place, kind in enumerate(kinds) if kind in ("codes", "features")]
            if not pictures:
                found["text"] += 1
            else:
                found["generation" if kinds[1] == "text" else "understanding"] += 1
    return found


def test_a_mixture_has_its_shares_and_leaves_no_sample_out(tmp_path: Path) -> None:
    made = tables("features", pairs=300, texts=20)
    mixture = {"generation": 5.0, "understanding": 2.0, "text": 3.0}
    rows, _ = pack(tmp_path, made, stage(LAYOUTS["features"], mixture=mixture))
    found = kinds_of(rows)
    shares = {task: count / sum(found.values()) for task, count in found.items()}
    assert shares["text"] == pytest.approx(0.3, abs=0.02)
    assert shares["generation"] == pytest.approx(0.5, abs=0.06)
    assert {p for row in rows for p in row["parents"]} == {k for t in made.values() for k in t["key"].to_pylist()}
    understood = [s for row in rows for s in row["segments"] if KINDS[s["kind"]] == "features"]
    assert len(understood) == found["understanding"]


def test_texts_without_a_share_are_rejected_with_the_reason(tmp_path: Path) -> None:
    rows, job = pack(tmp_path, tables("features"), stage(mixture={"generation": 1.0, "text": 0.0}))
    assert kinds_of(rows).keys() == {"generation"}
    assert set(job.rejected.values()) == {"the mixture gives texts no share"} and len(job.rejected) == 10


def test_sources_say_how_often_their_files_are_seen(tmp_path: Path) -> None:
    made = tables("features", pairs=60, texts=0)
    rows, job = pack(tmp_path, made, stage(sources={"films/": 2.0, "stills/1": 0.0}))
    labels = dict(zip(made["captions"]["key"].to_pylist(), made["captions"]["label"].to_pylist(), strict=True))
    seen = Counter(labels[p] for row in rows for p in row["parents"] if p in labels)
    documents = sum(row["segments"][-1]["document"] + 1 for row in rows)
    stills = [name for name in labels.values() if name.startswith("stills/1")]
    assert documents == 60 - len(stills) + 10 and not any(seen[name] for name in stills)
    assert list(job.rejected.values()) == [UNSEEN] * 2 * len(stills)


def test_captions_are_left_out_of_their_share_of_drawn_pictures(tmp_path: Path) -> None:
    rows, _ = pack(tmp_path, tables("features", pairs=300), stage(mixture={"generation": 1.0}, caption_drop=0.2))
    found = kinds_of(rows)
    assert found["understanding"] / 300 == pytest.approx(0.2, abs=0.06)  # a picture right behind BOS


def test_phases_follow_each_other_with_their_own_sizes_and_budgets(tmp_path: Path) -> None:
    made = tables("features", sizes=(16, 32))
    phases = {"small": Phase(size=16, video=False, max_tokens=100), "large": Phase(size=32, flops_per_pack=5e8)}
    rows, job = pack(tmp_path, made, stage(phases=phases))
    assert [row["order"] for row in rows] == list(range(len(rows)))
    names = [row["phase"] for row in rows]
    assert names == sorted(names, reverse=True) and set(names) == set(phases)
    small = [row for row in rows if row["phase"] == "small"]
    assert max(row["num_places"] for row in small) <= 100
    assert {s["rows"] for row in small for s in row["segments"] if KINDS[s["kind"]] == "codes"} == {2}
    assert {"small/imbalance", "large/imbalance"} <= set(job.summaries)
    films = {k for k, n in zip(made["captions"]["key"].to_pylist(), made["captions"]["label"].to_pylist(), strict=True)
             if n.startswith("films")}  # fmt: skip
    assert not films & {p for row in small for p in row["parents"]}
    assert films <= {p for row in rows for p in row["parents"]}


def test_the_order_of_phases_is_in_the_key_and_no_phases_are_as_they_were() -> None:
    from pipelines.key import recipe_tree

    small, large = {"small": Phase(size=16)}, {"large": Phase(size=32)}
    one, two, none = (recipe_tree(stage(phases=phases), {}) for phases in (small | large, large | small, {}))
    assert one != two and none["settings"]["phases"] == {}


def test_a_sample_above_the_budget_gets_its_own_lane_where_that_is_allowed(tmp_path: Path) -> None:
    made = tables("features")
    costly = stage(flops_per_pack=5e6)
    with pytest.raises(UserError, match=r"or packs\.own_lane=true"):
        pack(tmp_path, made, costly)
    rows, job = pack(tmp_path, made, stage(flops_per_pack=5e6, own_lane=True))
    assert job.summaries["num_lone"] > 0 and job.summaries["dropped"] == 0
    assert {p for row in rows for p in row["parents"]} == {k for t in made.values() for k in t["key"].to_pylist()}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_documents_of_several_pictures_have_their_share_and_stay_whole(kind: str, tmp_path: Path) -> None:
    """Text, image and mixed 2:2:1."""
    made = tables(kind, pairs=60, texts=30)
    pictures = made["indices"].to_pylist()
    names = [f.name for f in Indices.schema if f.name != "held_out"]
    rows = [
        {"pictures": [{name: pictures[(3 * n + i) % 60][name] for name in names} for i in range(3)],
         "texts": ["then one", "then two"], "held_out": n == 0}
        for n in range(9)
    ]  # fmt: skip
    made[MIXED] = table_of(rows, InterleavedIndices.schema, MIXED)
    mixture = {"generation": 1.0, "understanding": 1.0, "text": 2.0, "mixed": 1.0}
    given = {"trunk": SHAPE, "flops_per_pack": 3e8, "max_tokens": 900, "max_text_tokens": 100}
    packer = MixedPacks(layout=LAYOUTS[kind], mixture=mixture, **given)
    packs, job = pack(tmp_path, made, packer)
    assert list(job.rejected.values()) == ["held out for evaluation"]
    several = texts = pairs = 0
    for row in packs:
        for document in range(row["segments"][-1]["document"] + 1):
            kinds = [KINDS[s["kind"]] for s in row["segments"] if s["document"] == document]
            blocks = kinds.count("marks") // 2
            several += blocks >= 3
            texts += blocks == 0
            pairs += blocks == 1 or (blocks == 2 and kind == "scales")  # EOF between the frames of a film
    total = several + texts + pairs
    assert (several / total, texts / total) == (pytest.approx(0.2, abs=0.05), pytest.approx(0.4, abs=0.05))
    assert packs[0]["format"] == packs[-1]["format"]


@pytest.mark.parametrize(
    ("kind", "layout", "sentence"),
    [
        ("latents", CODES, r"indices hold latents, packs.layout.vision is codes"),
        ("scales", LAYOUTS["latents"], r"indices hold scales, packs.layout.vision is latents"),
    ],
)
def test_a_recipe_and_a_tokenizer_that_do_not_fit_are_one_sentence(kind, layout, sentence, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        pack(tmp_path, tables(kind), stage(layout))


def test_strange_mixtures_are_one_sentence() -> None:
    with pytest.raises(UserError, match="its tasks are generation, understanding, text"):
        stage(mixture={"drawing": 1.0})
    with pytest.raises(UserError, match="0 or more"):
        stage(mixture={"text": -1.0})


def test_more_passes_than_the_model_has_vectors_for_are_one_sentence(tmp_path: Path) -> None:
    rows, _ = pack(tmp_path, tables("passes", pairs=6), stage(LAYOUTS["passes"]))
    packs = FakeReader(table_of(rows, Packs.schema, "packs"))
    parts = replace(PARTS["passes"], max_scales=8)
    form = Format.from_json(rows[0]["format"])
    with pytest.raises(UserError, match=r"in 9 grids or passes of grids, and model\.parts\.max_scales is 8: give 9"):
        Loader(packs, 1, 0, form, parts).passes(0, 0, 1)
    assert Loader(packs, 1, 0, form, replace(parts, max_scales=9)).passes(0, 0, 1)


def test_a_layout_without_passes_is_named_as_before_there_were_any() -> None:
    """Or all packs, and the models after them, would be made again."""
    before, after = (stage(LAYOUTS[kind]).settings()["layout"] for kind in ("scales", "passes"))
    assert "interleave" not in before and after["interleave"] == 2
    assert "interleave" not in Format(layout=LAYOUTS["scales"], vocabulary=Vocabulary.compact(256, 4)).to_json()


@pytest.mark.parametrize("given", [{"interleave": 3}, {"interleave": 0}, {"vision": "codes", "interleave": 2}])
def test_passes_that_cannot_be_are_one_sentence(given: dict) -> None:
    with pytest.raises(ValueError, match=r"give 1, or with vision=scales 2, 4, 8"):
        Layout(**{"vision": "scales"} | given)


def test_nats_by_scale_add_up_to_those_of_all_codes_but_the_first(tmp_path: Path) -> None:
    from models.vocabulary import VISION
    from stages.train.loader import sums_by_modality, sums_by_scale

    rows, _ = pack(tmp_path, tables("scales"), stage(LAYOUTS["scales"]))
    form = Format.from_json(rows[0]["format"])
    made = joined(table_of(rows, Packs.schema, "packs"), form, 64.0, range(len(rows))).places
    nats = np.random.default_rng(0).random(len(made.targets))
    by_scale = np.array(sums_by_scale(nats, made)).reshape(-1, 2)
    whole = list(sums_by_modality(nats, made.targets, made.weights, form.vocabulary))[2 * VISION :]
    coarsest = np.setdiff1d(np.flatnonzero(form.vocabulary.modality(made.targets) == VISION), made.scale_at)
    assert by_scale[0].tolist() == [0, 0] and (by_scale[1:3, 1] == np.array([4, 16]) * len(coarsest)).all()
    assert by_scale.sum(0) == pytest.approx([whole[0] - nats[coarsest].sum(), whole[1] - len(coarsest)])
