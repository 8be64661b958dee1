"""Ingest accounts for every file, with numbers from decoding, not from headers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from stages.base import BadRow, Filtered
from stages.ingest import KINDS, Files, Images, Texts, Videos
from stages.probe import probe
from tests.stages.conftest import raw_row


def test_importing_costs_nothing_beyond_arrow() -> None:
    modules = "stages.ingest, stages.clip, stages.filter.score, stages.caption.caption, stages.sample_corpus"
    heavy = ["av", "cv2", "scenedetect", "rapidocr", "torch", "openai", "PIL", "onnxruntime"]
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_files_are_hashed_and_named_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.MP4").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b.xyz").write_bytes(b"y")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "c.gif").write_bytes(b"z")
    (video,), strange, (empty,), (gif,) = Files().process(
        [raw_row(tmp_path / name) for name in ("a.MP4", "b.xyz", "empty.png", "c.gif")], None
    )
    digest = hashlib.sha256(b"x" * 3_000_000)
    assert (video["kind"], video["digest"], video["unit"]) == ("video", digest.hexdigest(), digest.digest()[:16])
    assert set(video) == set(Files.schema.names)
    assert isinstance(strange, Filtered) and "unknown kind .xyz" in strange.reason and "mp4" in strange.reason
    assert empty["kind"] == "image" and gif["kind"] == "video"


@pytest.mark.slow
def test_every_real_video_is_accounted_for(shared: Path) -> None:
    bad, rows = {}, {}
    for path in sorted((shared / "videos").rglob("*")):
        if path.is_file() and KINDS.get(path.suffix[1:].lower()) == "video" and "captioned" not in path.parts:
            outcome = Videos().process([raw_row(path)], None)[0]
            if isinstance(outcome, BadRow):
                bad[path.name] = str(outcome)
            else:
                (rows[path.name],) = outcome
                assert set(rows[path.name]) == set(Videos.schema.names)
    assert set(bad) == {"zero_byte.webm", "truncated_no_moov.mp4", "text_named_as.mp4"}
    assert "empty" in bad["zero_byte.webm"] and "cannot be opened" in bad["truncated_no_moov.mp4"]
    assert rows["truncated_60pct.mp4"]["num_frames"] == 90
    assert rows["truncated_60pct.mp4"]["warning"] == "the header claims 150 frames, 90 could be decoded"
    assert rows["corrupted.mp4"]["num_frames"] == 32 and "stops after 32" in rows["corrupted.mp4"]["warning"]
    assert rows["truncated_50pct.webm"]["num_frames"] == 97 and rows["truncated_50pct.webm"]["warning"]
    warned = {name for name, row in rows.items() if row["warning"]}
    assert warned == {"truncated_60pct.mp4", "corrupted.mp4", "truncated_50pct.webm"}
    assert {name for name, row in rows.items() if row["variable_fps"]} == {"vfr_1080p.mp4", "newtonscradle.gif"}
    assert rows["carphone_pristine.mp4"]["sar"] == "128:117"
    assert rows["delayed_start.mp4"]["first_pts_s"] == pytest.approx(1.075)
    assert rows["mpeg1_mp2.mpg"]["first_pts_s"] == pytest.approx(0.54)
    sizes = {name: (rows[name]["width"], rows[name]["height"], rows[name]["rotation"]) for name in rows}
    assert sizes["rotated_90.mov"] == (320, 568, 270)
    assert sizes["rotated_180.mov"] == (568, 320, 180)
    assert sizes["nasa_rotated.mp4"] == (270, 480, 90)


def test_times_equal_torchcodecs(shared: Path) -> None:
    told = json.loads((shared / "oracles/torchcodec/nasa_13013.mp4.stream0.all_frames_info.json").read_text())
    row = probe(shared / "videos/nasa_13013.mp4")
    assert row["num_frames"] == len(told)
    assert row["first_pts_s"] == pytest.approx(float(told[0]["pts_time"]))
    last = told[-1]
    assert row["duration_s"] == pytest.approx(float(last["pts_time"]) + float(last["duration_time"]), abs=1e-3)


def test_sound_alone_is_no_video(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "song.mpg"
    path.write_bytes((shared / "videos/odd/audio_only.mp3").read_bytes())
    outcome = Videos().process([raw_row(path)], None)[0]
    assert isinstance(outcome, BadRow)


def test_a_playlist_cannot_make_the_decoder_read_other_files(tmp_path: Path, corpus) -> None:
    (tmp_path / "film.mp4").write_bytes((corpus.raw / "videos/film_000.mp4").read_bytes())
    trap = tmp_path / "trap.mp4"
    trap.write_text("ffconcat version 1.0\nfile film.mp4\n")
    with av.open(str(trap)) as container:  # FFmpeg itself would follow it
        assert next(container.decode(video=0)).width
    assert isinstance(Videos().process([raw_row(trap)], None)[0], BadRow)


def test_images_are_decoded_whole(shared: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(turned, exif=exif)
    paths = [turned, *(shared / "images" / name for name in ("odd/truncated.jpg", "odd/corrupt.jpg", "odd/cmyk.jpg"))]
    upright, truncated, corrupt, cmyk = Images().process([raw_row(path) for path in paths], None)
    assert (upright[0]["width"], upright[0]["height"]) == (20, 40)
    assert isinstance(truncated, BadRow) and isinstance(corrupt, BadRow)
    assert str(tmp_path) not in str(truncated) and str(shared) not in str(corrupt)
    assert cmyk[0]["mode"] == "CMYK" and set(cmyk[0]) == set(Images.schema.names)


def test_texts(tmp_path: Path) -> None:
    contents = [b"\xef\xbb\xbfA line\r\nand another\n", "caf\u00e9".encode("latin-1"), b" \n", b"a\0b"]
    paths = [tmp_path / f"{index}.txt" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    (good,), latin, blank, binary = Texts().process([raw_row(path) for path in paths], None)
    assert good["text"] == "A line\nand another" and good["num_chars"] == 18
    assert isinstance(latin, BadRow) and "UTF-8" in str(latin)
    assert isinstance(blank, BadRow) and isinstance(binary, BadRow)


def test_the_corpus_is_probed_as_the_truth_tells(corpus) -> None:
    for name, told in corpus.truth["files"].items():
        if told["kind"] != "video":
            continue
        outcome = Videos().process([raw_row(corpus.raw / name)], None)[0]
        if "scenes" not in told:
            assert isinstance(outcome, BadRow), name
            continue
        row = outcome[0]
        assert (row["num_frames"], row["width"], row["height"]) == (told["frames"], told["width"], told["height"]), name
        assert (row["codec"], row["variable_fps"]) == (told["codec"], told["variable_fps"]), name
        assert (row["rotation"] != 0) == told["rotated"], name
