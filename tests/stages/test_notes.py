"""Shards and sidecars: each member has a row, damage stays where it is, captions find their picture or film."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stages.base import BadRow, Filtered
from stages.ingest import Files, Images, Texts
from stages.notes import Notes, SourceCaptions
from tests.stages.conftest import LocalFile, raw_row
from tests.stages.fake_job import FakeJob, key_of, table_of


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


MEMBERS = {
    "0001.png": png(1), "0001.txt": b"a first picture", "0001.json": b'{"caption": "first", "url": "x"}',
    "0002.png": png(2), "0002.txt": b"a second picture",
    "a/0003.png": png(3), "readme.txt": b"words that belong to no picture", "odd.xyz": b"?",
}  # fmt: skip


def shard(path: Path, contents: dict[str, bytes] = MEMBERS) -> dict[str, int]:
    """Write a tar; where each member's header begins."""
    with tarfile.open(path, "w") as tar:
        for name, payload in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    with tarfile.open(path) as tar:
        return {info.name: info.offset for info in tar}


def listed(path: Path) -> list[dict[str, Any]]:
    (rows,) = Files().process([raw_row(path)], None)
    assert isinstance(rows, list) and all(set(row) - {"label"} == set(Files.schema.names) for row in rows)
    return rows


def member_row(path: Path, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the engine hands to the stage of that kind."""
    target = folder / Path(row["path"]).name
    target.write_bytes(path.read_bytes()[row["offset"] : row["offset"] + row["size_bytes"]])
    return row | {"raw": LocalFile(target, row["path"]), "key": key_of(row["path"]), "label": row["path"]}


def test_every_member_of_a_shard_is_a_row_of_its_kind(tmp_path: Path) -> None:
    shard(tmp_path / "s.tar")
    rows = {row["path"]: row for row in listed(tmp_path / "s.tar")}
    assert {path: row["kind"] for path, row in rows.items()} == {
        "s.tar/0001.png": "image", "s.tar/0001.txt": "sidecar", "s.tar/0001.json": "sidecar",
        "s.tar/0002.png": "image", "s.tar/0002.txt": "sidecar",
        "s.tar/a/0003.png": "image", "s.tar/readme.txt": "text", "s.tar/odd.xyz": "other",
    }  # fmt: skip
    assert rows["s.tar/0001.json"]["about"] == "s.tar/0001" and rows["s.tar/readme.txt"]["about"] is None
    held = (tmp_path / "s.tar").read_bytes()
    for path, row in rows.items():
        assert held[row["offset"] :][: row["size_bytes"]] == MEMBERS[path.removeprefix("s.tar/")]


def test_a_truncated_shard_keeps_its_good_members_and_says_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    starts = shard(path)
    path.write_bytes(path.read_bytes()[: starts["a/0003.png"] + 512 + 40])
    rows = {row["path"]: row for row in listed(path)}
    assert list(rows)[-1] == "s.tar/a/0003.png" and len(rows) == 6
    assert [row["path"] for row in rows.values() if row["damage"]] == ["s.tar/a/0003.png"]
    (lost,) = Images().process([member_row(path, rows["s.tar/a/0003.png"], tmp_path)], None)
    assert isinstance(lost, BadRow) and f"40 of {len(MEMBERS['a/0003.png'])} bytes" in str(lost)
    (good,) = Images().process([member_row(path, rows["s.tar/0002.png"], tmp_path)], None)
    assert isinstance(good, list)


def test_a_damaged_header_costs_that_member_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    starts = shard(path)
    broken = bytearray(path.read_bytes())
    broken[starts["0002.png"] : starts["0002.png"] + 200] = b"\xff" * 200
    path.write_bytes(broken)
    rows = listed(path)
    (lost,) = [row for row in rows if row["kind"] == "lost"]
    assert lost["offset"] == starts["0002.png"] and "no member" in lost["damage"]
    assert len(rows) == len(MEMBERS) and "s.tar/0002.txt" in {row["path"] for row in rows}


def test_what_is_no_tar_is_at_fault_and_gives_no_rows(tmp_path: Path) -> None:
    for name, payload in {"empty.tar": b"", "junk.tar": b"junk" * 4000, "zeros.tar": bytes(10240)}.items():
        (tmp_path / name).write_bytes(payload)
        (outcome,) = Files().process([raw_row(tmp_path / name)], None)
        assert isinstance(outcome, BadRow), name


@pytest.mark.shared
def test_a_real_shard_is_read_whole(shared: Path) -> None:
    rows = listed(shared / "videos/video_shard.tar")
    assert len(rows) == 18 and sum(row["kind"] == "video" for row in rows) == 6
    assert sum(row["kind"] == "sidecar" for row in rows) == 12 and not any(row["damage"] for row in rows)


def noted(path: Path) -> Any:
    row = raw_row(path, about=None, damage=None)
    return Notes().process([row | {"path": f"here/{path.name}"}], None)[0]


def test_captions_and_metadata_are_read_from_sidecars(tmp_path: Path) -> None:
    shard(tmp_path / "s.tar")
    rows = [row for row in listed(tmp_path / "s.tar") if row["kind"] == "sidecar"]
    made = [Notes().process([member_row(tmp_path / "s.tar", row, tmp_path)], None)[0] for row in rows]
    said = [(note["about"], note["what"], note["text"]) for notes in made for note in notes]
    assert said == [
        ("s.tar/0001", "caption", "a first picture"),
        ("s.tar/0001", "caption", "first"),
        ("s.tar/0001", "metadata", '{"url": "x"}'),
        ("s.tar/0002", "caption", "a second picture"),
    ]


def test_jsonl_names_its_files_relative_to_its_folder(tmp_path: Path) -> None:
    told = [
        {"file": "sub/x.png", "captions": ["one", "two", "one"]},
        {"nothing": 1},
        {"path": "../y.png", "text": "up"},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(one) for one in told))
    said = [(note["about"], note["text"]) for note in noted(tmp_path / "c.jsonl")]
    assert said == [("here/sub/x.png", "one"), ("here/sub/x.png", "two"), ("y.png", "up")]
    (tmp_path / "texts.jsonl").write_text('{"text": "a document"}\n')
    assert isinstance(noted(tmp_path / "texts.jsonl"), Filtered)
    (tmp_path / "bad.jsonl").write_text('{"file": "x.png", "text": "a"}\n{"file": ')
    assert "line 2" in str(noted(tmp_path / "bad.jsonl"))


def test_captions_of_the_source_go_to_the_clip_that_is_all_of_it(tmp_path: Path) -> None:
    files = [
        {"path": "s.tar/1.png", "digest": "d1", "container": "s.tar"},
        {"path": "film.mp4", "digest": "d2", "container": None},
    ]
    clips = [{"digest": "d1", "held_out": True}, *[{"digest": "d2", "held_out": False}] * 2]
    about = ["s.tar/1", "s.tar/1", "film.mp4", "gone.png"]
    notes = [{"about": name, "text": "a tree", "key": key_of("note", i)} for i, name in enumerate(about)]
    texts = pa.schema([("about", pa.string()), ("text", pa.string())])
    tables = {
        "files": table_of(files, pa.schema([(n, pa.string()) for n in files[0]]), "files"),
        "clips": table_of(clips, pa.schema([("digest", pa.string()), ("held_out", pa.bool_())]), "clips"),
        "notes": table_of(notes, texts, "notes"),
    }
    job = FakeJob(tmp_path, tables)
    (row,) = SourceCaptions().run(job)  # type: ignore[arg-type]
    assert (row["text"], row["captioner"], row["held_out"]) == ("a tree", "source", True)
    assert row["parents"][0] == key_of("clips", 0) and set(row) >= set(SourceCaptions.schema.names)
    reasons = sorted(job.rejected.values(), key=lambda said: said[-3:])
    assert "another sidecar" in reasons[0] and "several clips" in reasons[1] and "not in" in reasons[2]


def test_a_text_cut_short_is_not_taken_for_whole(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("half a sen")
    (outcome,) = Texts().process([raw_row(tmp_path / "t.txt", damage="The shard ends inside this member.")], None)
    assert isinstance(outcome, BadRow)
