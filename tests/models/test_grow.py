"""A model begun from a checkpoint of ours: the same for the same vocabulary, else the old rows by what they mean."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.checkpoints import CheckpointFolder
from infra.folder_bucket import LocalBucket
from models.any_to_any import AnyToAny, save_model
from models.batch import batch_of
from models.grow import NEW, grow, is_ours, matched, must_fit, start_from
from models.layout import Format, document
from models.places import places, tokens_of
from models.recipe import Parts
from models.trunk import TrunkConfig
from models.vocabulary import EMU3, Vocabulary
from tests.models import recipes

CODES = ("emu3", "nextflow", "passes", "janus")


def model_of(name: str, seed: int, parts: Parts | None = None, **vocabulary) -> AnyToAny:
    form, parts = recipes.FORMATS[name], parts or recipes.PARTS[name]
    given = {"text_size": 256, "codebook_size": form.vocabulary.codebook_size} | vocabulary
    form = dataclasses.replace(form, vocabulary=Vocabulary.compact(**given))
    return of_form(form, parts, seed)


def of_form(form: Format, parts: Parts, seed: int, tied: bool = False) -> AnyToAny:
    sections = (2, 1, 1) if parts.positions == "scales" else ()
    config = TrunkConfig(
        shape=recipes.SHAPE, vocabulary_size=form.vocabulary.size, rope_sections=sections, tied=tied, rope_base=1e4
    )
    size = form.vocabulary.codebook_size
    vectors = torch.randn(size, recipes.CODE_SIZE, generator=torch.Generator().manual_seed(seed)) if size else None
    return AnyToAny(config, parts, form, recipes.CODE_SIZE).initialise(seed, vectors).eval()


def saved(model: AnyToAny, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    save_model(model, folder, 1)
    return str(folder)


@torch.no_grad()
def logits(model: AnyToAny, name: str) -> torch.Tensor:
    """Of a picture with its caption, written with the model's own ids."""
    rng = np.random.default_rng(0)
    words = recipes.TEXT.encode("a red circle")
    said = document([words, recipes.picture_of(name, rng)], model.form, recipes.TEXT)
    made = places(tokens_of([said]), interleave=model.form.layout.interleave)
    hidden, _ = model.hidden(batch_of(made, model.form, model.parts))
    return model.logits(hidden)


@pytest.mark.parametrize("name", CODES)
def test_the_same_vocabulary_gives_the_same_model(name: str, tmp_path: Path) -> None:
    old, new = model_of(name, 1), model_of(name, 2)
    place = saved(old, tmp_path / "old")
    assert not torch.equal(logits(old, name), logits(new, name))
    start_from(new, place)
    assert torch.equal(logits(old, name), logits(new, name))
    assert all(torch.equal(tensor, new.state_dict()[n]) for n, tensor in old.state_dict().items())


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(("texts", "codes"), [(300, 16), (256, 24), (300, 24), (300, 12)])
def test_what_was_known_keeps_its_rows_and_logits(name: str, texts: int, codes: int, tmp_path: Path) -> None:
    old = model_of(name, 1)
    new = model_of(name, 2, text_size=texts, codebook_size=codes)
    place = saved(old, tmp_path / "old")
    grow(new, place)
    rows = matched(old.form.vocabulary, new.form.vocabulary)
    known = rows != NEW
    assert known.sum() == 256 + 8 + min(codes, 16)
    for table in ("embedding", "head"):
        before, after = (getattr(m.trunk, table).weight for m in (old, new))
        assert torch.equal(after[torch.from_numpy(known)], before[torch.from_numpy(rows[known])])
    if codes >= 16:
        one, two = logits(old, name), logits(new, name)
        torch.testing.assert_close(two[:, torch.from_numpy(known)], one[:, torch.from_numpy(rows[known])])


@pytest.mark.parametrize("name", CODES)
def test_new_rows_begin_at_the_mean_of_their_kind_and_differ(name: str, tmp_path: Path) -> None:
    old = model_of(name, 1)
    old.trunk.head.weight.data[:256] += 3.0
    old.trunk.head.weight.data[264:] -= 5.0
    new, fresh = (model_of(name, 2, text_size=400, codebook_size=64) for _ in range(2))
    grow(new, saved(old, tmp_path / "old"))
    for table in ("embedding", "head"):
        before, after, first = (getattr(m.trunk, table).weight for m in (old, new, fresh))
        for at, mean in ((slice(256, 400), before[:256].mean(0)), (slice(424, 472), before[264:].mean(0))):
            torch.testing.assert_close(after[at], first[at] + mean)
            assert len(after[at].unique(dim=0)) == len(after[at])


def test_vectors_of_new_codes_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    old, new, fresh = model_of("janus", 1), *(model_of("janus", 2, codebook_size=24) for _ in range(2))
    grow(new, saved(old, tmp_path / "old"))
    assert torch.equal(new.code_vectors[:16], old.code_vectors)
    assert torch.equal(new.code_vectors[16:], fresh.code_vectors[16:])
    torch.testing.assert_close(new.code_out.weight[16:], fresh.code_out.weight[16:] + old.code_out.weight.mean(0))


def test_more_scales_keep_the_vectors_of_the_old_ones(tmp_path: Path) -> None:
    parts = recipes.PARTS["nextflow"]
    old, new = model_of("nextflow", 1), model_of("nextflow", 2, dataclasses.replace(parts, max_scales=40))
    grow(new, saved(old, tmp_path / "old"))
    assert torch.equal(new.scale_embedding.weight[:32], old.scale_embedding.weight)
    assert torch.equal(logits(old, "nextflow"), logits(new, "nextflow"))


def test_special_tokens_are_matched_by_name_and_reserved_ones_by_their_place() -> None:
    small = Vocabulary.compact(100, 16)
    large = dataclasses.replace(
        small, text_size=120, bos=140, eos=141, pad=120, boi=142, img=143, eoi=144, eol=131, eof=132, visual_offset=150
    )
    rows = matched(small, large)
    assert [rows[i] for i in (140, 141, 120, 142, 143, 144, 131, 132)] == list(range(100, 108))
    assert (rows[:100] == np.arange(100)).all() and (rows[100:120] == NEW).all() and rows[121] == NEW
    assert (rows[150:] == 108 + np.arange(16)).all() and (rows != NEW).sum() == 100 + 8 + 16
    assert (matched(EMU3, EMU3) == np.arange(EMU3.size)).all()
    longer = dataclasses.replace(
        large, **{n: getattr(large, n) + 30 for n in ("text_size", "bos", "eos", "pad", "boi", "img", "eoi", "eol",
                                                      "eof", "visual_offset")}
    )  # fmt: skip
    assert matched(large, longer)[151] == 121  # the reserved id behind pad in both
    assert matched(longer, large).max() < longer.size and (matched(longer, large) != NEW).all()


def test_embedding_and_head_that_are_one_stay_one(tmp_path: Path) -> None:
    form = recipes.FORMATS["emu3"]
    large = dataclasses.replace(form, vocabulary=Vocabulary.compact(300, 20))
    old, new = of_form(form, Parts(), 1, tied=True), of_form(large, Parts(), 2, tied=True)
    grow(new, saved(old, tmp_path / "old"))
    assert new.trunk.head.weight is new.trunk.embedding.weight
    assert torch.equal(new.trunk.head.weight[:256], old.trunk.head.weight[:256])


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("emu3", {"code_head": "own"}, r"model\.parts\.code_head shared, here it is own: set it as there"),
        ("nextflow", {"span": 32.0}, r"model\.parts\.span 64\.0"),
        ("nextflow", {"scale_embeddings": False}, r"scale_embeddings True"),
    ],
)
def test_other_parts_are_one_sentence(name: str, change: dict, sentence: str, tmp_path: Path) -> None:
    place = saved(model_of(name, 1), tmp_path / "old")
    with pytest.raises(ValueError, match=sentence) as caught:
        grow(model_of(name, 2, dataclasses.replace(recipes.PARTS[name], **change)), place)
    assert "\n" not in str(caught.value)


def test_other_passes_are_one_sentence(tmp_path: Path) -> None:
    """Scale vectors and slots of two passes would mean those of four."""
    old = model_of("passes", 1)
    place, layout = saved(old, tmp_path / "old"), dataclasses.replace(old.form.layout, interleave=4)
    with pytest.raises(ValueError, match=r"packs\.layout\.interleave 2, here it is 4: set it as there"):
        must_fit(old.trunk.config, old.parts, dataclasses.replace(old.form, layout=layout), place)


def test_other_sizes_and_tokenizers_are_one_sentence(tmp_path: Path) -> None:
    old = model_of("emu3", 1, text_digest="a", vision_digest="v")
    place = saved(old, tmp_path / "old")
    config, form = old.trunk.config, old.form
    with pytest.raises(ValueError, match="has shape="):
        other = dataclasses.replace(config, shape=dataclasses.replace(recipes.SHAPE, layers=3))
        must_fit(other, Parts(), form, place)
    with pytest.raises(ValueError, match=r"model\.tied False"):
        must_fit(dataclasses.replace(config, tied=True), Parts(), form, place)
    with pytest.raises(ValueError, match=r"latent_size 0, here it is 4"):
        must_fit(config, Parts(), dataclasses.replace(form, latent_size=4), place)
    for kind in ("text", "vision"):
        other = dataclasses.replace(form.vocabulary, **{f"{kind}_digest": "b"})
        with pytest.raises(ValueError, match=f"another {kind} tokenizer"):
            must_fit(config, Parts(), dataclasses.replace(form, vocabulary=other), place)
    larger = dataclasses.replace(form.vocabulary, text_size=300, text_digest="b")
    must_fit(config, Parts(), dataclasses.replace(form, vocabulary=larger), place)
    code_size = json.loads((tmp_path / "old" / "config.json").read_text())["code_size"]
    with pytest.raises(ValueError, match=r"code_vectors of shape \[16, 5\], this model \[16, 9\]"):
        janus = saved(model_of("janus", 1), tmp_path / "janus")
        grow(AnyToAny(config, recipes.PARTS["janus"], recipes.FORMATS["janus"], code_size + 4).initialise(0), janus)


def test_a_folder_of_a_root_is_checked_against_its_manifest(tmp_path: Path) -> None:
    old = model_of("emu3", 1)
    saved(old, tmp_path / "made")
    published = CheckpointFolder(LocalBucket(tmp_path / "root"), "checkpoints/model/abc.1")
    published.save(7, tmp_path / "made", {})
    (folder,) = [p for p in (tmp_path / "root/checkpoints/model/abc.1").iterdir() if p.is_dir()]
    assert is_ours(str(folder)) and not is_ours(str(folder.parent))
    new = model_of("emu3", 2)
    start_from(new, str(folder))
    assert torch.equal(logits(old, "emu3"), logits(new, "emu3"))
    lost = folder.rename(folder.with_suffix(".0000"))
    with pytest.raises(ValueError, match=r"was never published, step-000007\.json names"):
        start_from(new, str(lost))
    lost.rename(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="is damaged"):
        start_from(new, str(folder))
