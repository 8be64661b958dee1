"""The curation pipeline by the command line: sample stills, a shard with captions, planted copies and a document."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import plait
from tests.stages import tiny_models
from tests.stages.test_filter import film, panning

pytestmark = pytest.mark.slow


def photograph(seed: int) -> Image.Image:
    """A picture with content at all scales, 600 x 640."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 255, (2**k, 2**k, 3), np.uint8)).resize((640, 600))) / 2**k
        for k in range(2, 7)
    ]
    whole = np.sum(layers, axis=0)
    return Image.fromarray((whole / whole.max() * 255).astype(np.uint8))


def payload(picture: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def write_source(folder: Path) -> None:
    """A shard with a truncated last member, a copy, an edited picture, two films, and texts."""
    members = {"a.png": payload(photograph(1)), "a.txt": b"a told picture", "b.png": payload(photograph(2))}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = buffer.getvalue()
    (folder / "s.tar").write_bytes(whole[: whole.rindex(b"IEND") - 5000])
    (folder / "copy.jpg").write_bytes(payload(photograph(1).resize((560, 525)), "jpeg"))
    edited = photograph(3)
    (folder / "before.png").write_bytes(payload(edited))
    edited.paste((255, 0, 0), (250, 200, 400, 300))
    (folder / "after.png").write_bytes(payload(edited))
    (folder / "captions.jsonl").write_text(json.dumps({"file": "before.png", "captions": ["a place", "a scene"]}))
    (folder / "film.mp4").write_bytes(film(panning(0.5, 48)))
    (folder / "fast.mp4").write_bytes(film(panning(8.0, 48)))
    words = "the cat sat on the mat and looked at the rain that fell on the quiet street all through the long day"
    (folder / "one.txt").write_text(words)
    (folder / "two.txt").write_text(words.upper())
    (folder / "short.txt").write_text("too few words")


def preferring(folder: Path) -> list[str]:
    """Settings with which captions are compared with their clips, by a tiny model."""
    return [f"preferences.weights.hps={tiny_models.clip(folder)}", "select.finetune_mean=hps > -100 and mps is null"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, near):
    folder = tmp_path_factory.mktemp("curate")
    (folder / "src").mkdir()
    write_source(folder / "src")
    arguments = ["pipeline=curate", "source=src", "root=data", *preferring(tmp_path_factory.mktemp("clip"))]
    done = plait("run", *arguments, "select.quality=quality >= 0", "~select.beauty", "--json", cwd=folder, env=near)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.strip().splitlines()[-1])


def rows_of(folder: Path, dataset: str, columns: list[str]) -> list[dict]:
    from infra.folder_bucket import LocalBucket
    from pipelines.standing import Standing

    standing = Standing(LocalBucket(folder / "data"))
    return standing.store.scan(standing.snapshot(dataset), columns).to_pylist()


def test_every_path_of_curation_gives_what_was_planted(made):
    folder, run = made
    stages = {stage["name"]: stage for stage in run["stages"]}
    assert run["ok"] and all(stage["state"] == "done" for stage in run["stages"])
    assert stages["images"]["quarantined"] == 1 and stages["images"]["rows_out"] == 4  # b.png is cut short
    told = {row["text"] for row in rows_of(folder, "source_captions", ["text"])}
    assert told == {"a told picture", "a place", "a scene"}
    copies = [row["label"] for row in rows_of(folder, "distinct", ["label", "duplicate_of"]) if row["duplicate_of"]]
    assert copies == ["copy.jpg"]  # before and after differ in colour: both are kept
    captioned = {row["label"].partition(" [")[0] for row in rows_of(folder, "captions", ["label"])}
    assert "s.tar/a.png" in captioned and "film.mp4" in captioned and "fast.mp4" not in captioned
    preferred = rows_of(folder, "preferred", ["label", "hps", "passes"])
    assert len(preferred) == len(rows_of(folder, "distinct", ["label"])) > len(captioned)
    assert {row["label"].partition(" [")[0] for row in preferred if row["hps"] is not None} == captioned
    assert {row["label"] for row in rows_of(folder, "finetune", ["label"])} == {
        "s.tar/a.png",
        "before.png",
        "after.png",
    }
    (edit,) = rows_of(folder, "edits", ["text", "changed", "label"])
    assert edit["text"] and edit["label"].count("before.png") == edit["label"].count("after.png") == 1
    (frames,) = rows_of(folder, "interleaved", ["frames", "texts"])
    assert len(frames["frames"]) == 4 and len(frames["texts"]) == 3
    assert [row["text"] for row in rows_of(folder, "clean_texts", ["text"])] in (
        [(folder / "src" / name).read_text()] for name in ("one.txt", "two.txt")
    )


def test_the_cards_show_reasons_thresholds_and_what_was_dropped(made):
    from dashboards.cards import cards_of, thresholds_of
    from infra.folder_bucket import LocalBucket
    from infra.ledger import snapshot_of
    from pipelines.standing import Standing

    folder, _ = made
    standing = Standing(LocalBucket(folder / "data"))
    done = standing.done("captions")
    cards = cards_of(standing.store, snapshot_of(done), done)
    assert {"funnel", "thresholds", "kept", "dropped"} <= set(cards)
    for png in cards.values():
        image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert image.std() > 1
    assert thresholds_of({"a": "flow is null or flow between 0.15 and 20", "b": "text_area < 0.1"}) == {
        "flow": [0.15, 20.0],
        "text_area": [0.1],
    }


def test_a_moved_clause_scores_nothing_anew_and_copies_stand_in_whatever_lies_where(made, near):
    folder, _ = made
    shutil.move(folder / "src" / "s.tar", folder / "src" / "moved.tar")
    arguments = ["pipeline=curate", "source=src", "root=data", "tracking=none", "select.quality=quality >= 0"]
    arguments += ["~select.beauty", "select.flow=flow is null or flow < 1000"]
    done = plait("run", *arguments, "--json", cwd=folder, env=near)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = {s["name"]: s for s in json.loads(done.stdout.strip().splitlines()[-1])["stages"]}
    assert all(stages[name]["computed"] == 0 for name in ("images", "clips", "scores"))
    assert stages["captions"]["computed"] == 1  # the fast film
