"""Evaluation: metrics against independent ones, only held-out rows scored, absent suites absent."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from infra.types import UserError
from models import raster
from models.any_to_any import AnyToAny, load_model, save_model
from models.flops import TrunkShape
from models.inception import Inception, frechet_distance, load_inception
from models.layout import Format, Picture, document
from models.quality import psnr, ssim
from models.raster import Marks
from models.recipe import Parts
from models.tokenizers.codes import unpacked
from models.tokenizers.interface import load_tokenizer, to_bytes, to_pixels
from models.tokenizers.text import ByteTokenizer
from models.trunk import TrunkConfig
from models.vocabulary import TEXT, VISION
from stages import frames
from stages.evaluate.baselines import Bigram, LinearNoise, unigram
from stages.evaluate.evaluate import Evals
from stages.evaluate.heldout_loss import Heldout, likelihoods
from stages.extract import Indices
from stages.pack import Packs
from tests.stages.fake_job import FakeJob, FakeKit, FakeReader, table_of
from tests.stages.shapes_world import CAPTIONS, world
from tests.stages.test_pack import EMU3
from tests.tokenizers import vq

SHAPE = TrunkShape(layers=1, width=32, heads=2, kv_heads=1, ffn=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FakeJob:
    """A job with every input, its model and tokenizer untrained."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("evaluate")
    clips, captions = world(18, 2, held_out_every=5)
    tokenizer = vq(codebook_size=20)
    (root / "tokenizer").mkdir()
    tokenizer.save(root / "tokenizer")
    stage = Indices(size=32, frames_per_clip=2)
    outcomes = stage.process(clips.to_pylist(), stage.setup(FakeKit({"tokenizer": root / "tokenizer"})))
    rows = [o[0] | {"parents": [key]} for o, key in zip(outcomes, clips["key"].to_pylist(), strict=True)]
    tables = {"clips": clips, "captions": captions, "indices": table_of(rows, Indices.schema, "indices")}
    words = [{"text": f"a text {i}", "held_out": i % 3 == 0} for i in range(9)]
    tables["texts"] = table_of(words, CAPTIONS, "texts")
    packer = Packs(layout=EMU3, trunk=SHAPE, flops_per_pack=1e8, max_tokens=900)
    tables["packs"] = table_of(list(packer.run(FakeJob(root / "packs", tables))), packer.schema, "packs")
    form = Format.from_json(tables["packs"]["format"][0].as_py())
    config = TrunkConfig(shape=SHAPE, vocabulary_size=form.vocabulary.size)
    model = AnyToAny(config, Parts(), form).initialise(0)
    (root / "model").mkdir()
    save_model(model, root / "model", 7)
    return FakeJob(root / "job", tables, {"model": root / "model", "tokenizer": root / "tokenizer"})


def fresh(job: FakeJob, path: Path, **tables: pa.Table) -> FakeJob:
    return FakeJob(path, job.tables | tables, job.sides)


def test_psnr_and_ssim_equal_scikit_image() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    others = (pictures + rng.normal(0, 20, pictures.shape)).clip(0, 255).astype(np.uint8)
    kwargs = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for i, (a, b) in enumerate(zip(pictures, others, strict=True)):
        assert psnr(pictures, others)[i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
        expected = structural_similarity(a, b, channel_axis=-1, **kwargs)
        assert ssim(pictures, others)[i] == pytest.approx(expected, abs=1e-6)
    assert ssim(pictures, pictures).min() == pytest.approx(1)


def test_every_suite_scores_held_out_rows_only(made: FakeJob, tmp_path: Path) -> None:
    job = fresh(made, tmp_path)
    rows = list(Evals(tokenizer_size=32, num_samples=3).run(job))
    assert pa.Table.from_pylist(rows, Evals.schema).num_rows == len(rows)
    keys = {name: table.filter(table["held_out"])["key"].to_pylist() for name, table in made.tables.items()
            if name != "packs"}  # fmt: skip
    by_suite = {suite: [r["parents"][0] for r in rows if r["suite"] == suite] for suite in {r["suite"] for r in rows}}
    assert set(by_suite["tokenizer"]) == set(keys["clips"]) and len(by_suite["tokenizer"]) == 2 * len(keys["clips"])
    assert set(by_suite["heldout/text"]) == set(keys["captions"]) | set(keys["texts"])
    assert set(by_suite["heldout/vision"]) == set(by_suite["heldout/caption"]) == set(keys["captions"])
    assert len(by_suite["samples"]) == 3 and set(by_suite["samples"]) <= set(keys["captions"])
    assert {row["step"] for row in rows} == {7}
    names = ("tokenizer/psnr", "tokenizer/ssim", "heldout/text_loss", "heldout/text_unigram", "heldout/vision_loss")
    assert set(names) < set(job.summaries) and "samples/psnr" in job.summaries
    assert job.pictures["samples"].startswith(b"\x89PNG")
    assert list(Evals(tokenizer_size=32, num_samples=3).run(fresh(made, tmp_path))) == rows


@pytest.mark.slow
def test_rfid_is_that_of_all_frames_where_weights_are_given(made: FakeJob, tmp_path: Path) -> None:
    """The expected value from frames redrawn here, in one go; without weights neither a metric nor another key."""
    torch.manual_seed(0)
    weights = tmp_path / "inception.safetensors"
    save_file(Inception().state_dict(), weights)
    job = fresh(made, tmp_path)
    stage = Evals(tokenizer_size=32, max_documents=0, num_samples=1, inception_weights=str(weights))
    list(stage.run(job))
    held = made.tables["clips"].filter(made.tables["clips"]["held_out"])
    tokenizer, inception = load_tokenizer(made.sides["tokenizer"]), load_inception(weights)
    true, redrawn = [], []
    view = frames.View(size=32, frames=8, fps=12, cover="middle")
    for clip in sorted(held.to_pylist(), key=lambda row: row["key"]):
        of = [clip[name] for name in ("media", "source_kind", "num_frames", "fps")]
        true.append(frames.prepare(*of, view, tokenizer.stride).pictures)
        again = tokenizer.decode(tokenizer.encode(to_pixels(torch.from_numpy(true[-1])[None])))[0]
        redrawn.append(to_bytes(again).numpy()[: len(true[-1])])
    expected = frechet_distance(*(inception.features(np.concatenate(part)) for part in (true, redrawn)))
    assert job.summaries["tokenizer/rfid"] == pytest.approx(expected, rel=1e-3)
    assert "inception_weights" in stage.settings() and "inception_weights" not in Evals(tokenizer_size=32).settings()


def test_inception_as_a_pickle_is_refused(made: FakeJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no safetensors file"):
        list(Evals(tokenizer_size=32, inception_weights="pt_inception.pth").run(fresh(made, tmp_path)))


def test_no_held_out_rows_leave_the_metrics_out(made: FakeJob, tmp_path: Path) -> None:
    seen = {name: table.filter(pa.compute.invert(table["held_out"]))
            for name, table in made.tables.items() if name != "packs"}  # fmt: skip
    job = fresh(made, tmp_path, **seen)
    assert list(Evals(tokenizer_size=32).run(job)) == [] and job.summaries == {}


def test_likelihoods_equal_dense_cross_entropy(made: FakeJob) -> None:
    model, _ = load_model(made.sides["model"])
    rng = np.random.default_rng(0)
    documents = []
    for n in (5, 1, 30):
        written = document([rng.integers(256, size=n).tolist()], model.form, ByteTokenizer())
        tokens = written.joined()[0]
        documents.append(Heldout(key=b"", prompt="", document=written, tokens=tokens, measured=np.zeros(n, np.int8)))
    from models.attention import DenseAttention, may_see

    for one, nats in zip(documents, likelihoods(model, documents), strict=True):
        n = len(one.tokens)
        tokens = torch.from_numpy(one.tokens)[None]
        with torch.no_grad():
            x = model.trunk.embedding(tokens)
            logits = model.trunk.head(model.trunk(x, torch.arange(n)[None], DenseAttention(may_see(torch.zeros(n)))))[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
        assert nats[0] == 0 and np.allclose(nats[1:], expected, atol=1e-4)


def _trained_on(made: FakeJob) -> list[list[int]]:
    """Ids of all captions and texts in the packs."""
    tables = (made.tables["captions"], made.tables["texts"])
    return [ByteTokenizer().encode(row["text"]) for t in tables for row in t.to_pylist() if not row["held_out"]]


def test_unigram_is_the_frequency_of_a_token_in_its_modality(made: FakeJob) -> None:
    form = Format.from_json(made.tables["packs"]["format"][0].as_py())
    nats = unigram(FakeReader(made.tables["packs"]), form)
    counts = {TEXT: np.zeros(256), VISION: np.zeros(20)}
    for ids in _trained_on(made):
        counts[TEXT] += np.bincount(ids, minlength=256)
    for row in made.tables["indices"].to_pylist():
        if not row["held_out"]:
            counts[VISION] += np.bincount(unpacked(row["ids"], 20), minlength=20)
    kinds = form.vocabulary.modality(np.arange(form.vocabulary.size))
    for kind, count in counts.items():
        assert np.allclose(nats[kinds == kind], -np.log((count + 1) / (count + 1).sum()))


def test_the_bigram_is_a_distribution_after_every_token_and_counts_pairs_inside_texts(made: FakeJob) -> None:
    form = Format.from_json(made.tables["packs"]["format"][0].as_py())
    packs = FakeReader(made.tables["packs"])
    bigram = Bigram(packs, form, unigram(packs, form))
    pairs = [pair for ids in _trained_on(made) for pair in itertools.pairwise(ids)]
    for before in (pairs[0][0], ord("~")):
        probabilities = [np.exp(-bigram.nats(np.array([before, after]))[1]) for after in range(256)]
        assert sum(probabilities) == pytest.approx(1.0)
    before, after = max(set(pairs), key=pairs.count)
    seen = sum(pair[0] == before for pair in pairs)
    distinct = len({pair for pair in pairs if pair[0] == before})
    lower = np.exp(-unigram(packs, form)[after])
    expected = (pairs.count((before, after)) + distinct * lower) / (seen + distinct)
    assert bigram.nats(np.array([before, after]))[1] == pytest.approx(-np.log(expected))


def test_the_line_through_a_latent_is_the_best_one() -> None:
    """Against least squares over many draws."""
    rng = np.random.default_rng(0)
    kept, clean = 0.6, 0.3 + 0.8 * rng.standard_normal((200_000, 1))
    noise = rng.standard_normal(clean.shape)
    line = LinearNoise.__new__(LinearNoise)
    line.mean_C, line.variance_C = np.array([0.3]), np.array([0.64])
    shown = np.sqrt(kept) * clean + np.sqrt(1 - kept) * noise
    best = np.polyfit(shown[:, 0], noise[:, 0], 1)
    fitted = float(np.square(np.polyval(best, shown) - noise).mean())
    assert line.error(clean, noise, kept) == pytest.approx(fitted, rel=1e-3)


def test_a_tokenizer_of_other_codes_is_refused(made: FakeJob, tmp_path: Path) -> None:
    vq(1, codebook_size=20).save(tmp_path)
    job = FakeJob(tmp_path, made.tables, made.sides | {"tokenizer": tmp_path})
    with pytest.raises(UserError, match="another tokenizer"):
        list(Evals(tokenizer_size=32).run(job))


def test_drawn_samples_are_parseable_codes(made: FakeJob, tmp_path: Path) -> None:
    form = Format.from_json(made.tables["packs"]["format"][0].as_py())
    for row in Evals(tokenizer_size=32, num_samples=2).run(fresh(made, tmp_path)):
        if row["suite"] == "samples":
            codes = np.array(eval(row["output"]))
            tokens = document([Picture(grids=((1, 4, 4),), ids=codes)], form, ByteTokenizer()).joined()[0].tolist()
            found = raster.parse_block(tokens[1:-1], form.vocabulary, ByteTokenizer(), Marks())
            assert found[1].tolist() == codes.tolist()
