"""Families are found and negatives left alone, whatever the order of rows; one of each family is kept and named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stages import alike, media
from stages.caption.edits import Edits, changed_share
from stages.filter.distinct import Distinct
from stages.filter.fingerprint import fingerprint
from stages.filter.score import Scores
from tests.stages.conftest import Corpus
from tests.stages.fake_job import FakeJob, key_of, table_of


def hashes_of(payload: bytes, kind: str) -> list[bytes]:
    found = (fingerprint(picture) for _, picture in media.sampled(payload, kind, 1.0, 256))
    return [one for one in found if one is not None]


def looks_of(folder: Path, names: list[str], kind: str) -> list[alike.Look]:
    return [
        alike.look(name.encode(), kind, hashes_of((folder / name).read_bytes(), kind), None, (index,))
        for index, name in enumerate(names)
    ]


def families(looks: list[alike.Look]) -> set[frozenset[str]]:
    stood_for = alike.representatives(looks, Distinct().bounds())
    found: dict[bytes, set[str]] = {}
    for look in looks:
        found.setdefault(stood_for.get(look.key, (look.key, 0))[0], set()).add(look.key.decode())
    return {frozenset(members) for members in found.values()}


@pytest.mark.shared
def test_the_image_families_of_the_oracle_are_found_and_no_others(shared: Path) -> None:
    folder = shared / "images/dedup"
    told = json.loads((shared / "oracles/image_hashes.json").read_text())
    names = sorted(path.name for path in folder.glob("*.jpg") if "corrupt" not in path.name)
    found = families(looks_of(folder, names, "image"))
    bridges = frozenset(name for name in told["pdq"] if name.startswith("bridge_"))
    resized = told["imagededup"]["duplicates_at_phash_distance_10"]["ukbench00120.jpg"]
    assert {family for family in found if len(family) > 1} == {bridges, frozenset(["ukbench00120.jpg", *resized])}


@pytest.mark.shared
def test_the_video_families_of_the_oracle_are_found_and_no_others(shared: Path) -> None:
    """Whole videos; clips of them go the same way. The stream behind a text card is found by its frames."""
    told = json.loads((shared / "oracles/video_duplicates.json").read_text())
    wanted = {frozenset(family) for family in told["clusters_c1_c2_0.7"] if len(family) > 1}
    wanted |= {frozenset(two) for two in (("flower.mp4", "flower.webm"), ("toy_rabbit.webm", "toy_rabbit_320.webm"))}
    wanted.add(frozenset(("stream.mp4", "stream_textcard.webm")))
    alone = ["doorknob.mp4", "toy_pig.webm", "toy_frog.webm", "bikes.mp4", "chaplin.mp4", "basketball.mp4"]
    names = sorted({name for family in wanted for name in family} | {"pattern_sd_logo.mp4", *alone})
    found = families(looks_of(shared / "videos", names, "video"))
    assert {family for family in found if len(family) > 1} == wanted


SCORES = {
    "source_kind": "image", "short_side": 512, "duration_s": 0.0, "text_area": 0.0, "flow": None, "solid_colour": 0.1,
    "flat_colours": 0.1, "quality": 5.0, "num_frames_seen": 1, "technical": 5.0, "laion": None, "embedding": None,
}  # fmt: skip


def scored(clip: int, bits: int, shade: int = 128, **more: Any) -> dict[str, Any]:
    """A row of scores whose hash has the lowest `bits` bits set, of one shade of grey."""
    name = {"key": key_of("score", clip), "parents": [key_of("clips", clip)], "label": f"clip {clip}"}
    return SCORES | name | {"fingerprints": [((1 << bits) - 1).to_bytes(8, "big") + bytes([shade]) * 48]} | more


def run(folder: Path, rows: list[dict[str, Any]], passing: list[int], **settings: Any) -> dict[bytes, dict[str, Any]]:
    clips = [{"digest": str(n), "key": key_of("clips", n)} for n in passing]
    tables = {
        "clips": table_of(clips, pa.schema([("digest", pa.string())]), "clips"),
        "scores": table_of(rows, Scores.schema, "scores"),
    }
    made = list(Distinct(**settings).run(FakeJob(folder, tables)))  # type: ignore[arg-type]
    assert all(set(row) >= set(Distinct.schema.names) for row in made)
    return {row["parents"][0]: row for row in made}


def test_the_best_of_a_family_stands_and_is_named_in_the_others(tmp_path: Path) -> None:
    rows = [scored(0, 0), scored(1, 4, short_side=720), scored(2, 60), scored(3, 2, short_side=1080)]
    random.Random(0).shuffle(rows)
    found = run(tmp_path, rows, passing=[0, 1, 2])
    largest = key_of("clips", 1)  # 3 is larger, but does not pass: it stands for nobody
    assert found[key_of("clips", 0)]["duplicate_of"] == largest and found[largest]["family"] == 2
    assert {k for k, row in found.items() if row["duplicate_of"]} == {key_of("clips", 0)}
    assert not found[key_of("clips", 3)]["passes"] and found[key_of("clips", 2)]["family"] == 1


def test_the_order_of_rows_does_not_matter_and_likeness_is_not_handed_on(tmp_path: Path) -> None:
    rows = [scored(n, 8 * n) for n in range(7)]  # each is like its neighbours, the ends are not alike
    first = run(tmp_path, rows, list(range(7)))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert run(tmp_path, rows, list(range(7))) == first
    for row in first.values():
        if row["duplicate_of"]:
            assert first[row["duplicate_of"]]["duplicate_of"] is None


def test_pictures_of_one_outline_and_other_colours_are_no_copies(tmp_path: Path) -> None:
    found = run(tmp_path, [scored(0, 0, shade=100), scored(1, 0, shade=135), scored(2, 0, shade=180)], [0, 1, 2])
    assert sorted(row["family"] for row in found.values()) == [0, 1, 2]


def test_copies_in_the_sample_corpus_are_found_and_drawings_alike_are_not(corpus: Corpus) -> None:
    told = {n: t for n, t in corpus.truth["files"].items() if t["kind"] == "image"}
    looks = looks_of(corpus.raw, sorted(told), "image")
    copies = [family for family in families(looks) if len(family) > 1]
    planted = {name for name, t in told.items() if {"exact_duplicate", "near_duplicate"} & set(t["trouble"])}
    assert planted and all(any(name in family for family in copies) for name in planted)
    # the shape of a small thing is lost on the hash: a star and a circle of one colour in one place may be merged
    assert sum(len(family) - 1 for family in copies) - len(planted) <= 0.02 * len(told)


def test_embeddings_find_what_hashes_do_not(tmp_path: Path) -> None:
    vectors = [[1.0, 0.0], [0.999, 0.04], [0.0, 1.0]]
    rows = [scored(n, 30 * n, embedding=vector) for n, vector in enumerate(vectors)]
    found = run(tmp_path, rows, [0, 1, 2])
    assert sum(row["duplicate_of"] is not None for row in found.values()) == 1
    assert all(row["duplicate_of"] is None for row in run(tmp_path, rows, [0, 1, 2], min_cosine=2.0).values())


def test_an_edited_pair_is_found_and_described(tmp_path: Path, shared: Path) -> None:
    names = [
        "dj_img_pair_1.jpg",
        "dj_img_pair_2.jpg",
        "dj_cat.jpg",
        "dedup/ukbench00120.jpg",
        "dedup/ukbench00120_resize.jpg",
    ]
    payloads = [(shared / "images" / name).read_bytes() for name in names]
    clips = [{"media": p, "source_kind": "image", "held_out": n == 1} for n, p in enumerate(payloads)]
    schema = pa.schema([("media", pa.large_binary()), ("source_kind", pa.string()), ("held_out", pa.bool_())])
    looks = pa.schema([("fingerprints", pa.list_(pa.binary(56))), ("embedding", pa.list_(pa.float32()))])
    seen = [{"parents": [key_of("clips", n)], "fingerprints": hashes_of(p, "image")} for n, p in enumerate(payloads)]
    tables = {"clips": table_of(clips, schema, "clips"), "distinct": table_of(seen, looks, "distinct")}
    job = FakeJob(tmp_path, tables)
    (pair,) = Edits().run(job)  # type: ignore[arg-type]
    assert set(pair["parents"]) == {key_of("clips", 0), key_of("clips", 1)} and pair["held_out"]
    assert pair["text"] and 0.02 < pair["changed"] < 0.6 and set(pair) >= set(Edits.schema.names)
    assert list(job.rejected.values()) == ["the nearest two are copies"]


def test_a_copy_in_another_size_is_no_edit(shared: Path) -> None:
    picture = Image.open(shared / "images/coffee.png").convert("RGB")
    small = np.asarray(picture.resize((300, 200)))
    edited = np.asarray(picture).copy()
    edited[100:200, 100:300] = (255, 0, 0)
    assert changed_share(np.asarray(picture), small) < 0.02 < changed_share(np.asarray(picture), edited) < 0.6
