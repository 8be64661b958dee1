"""The text tokenizer: trained on what is not held out, kept with the run, in the key by what it is."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from infra.types import UserError
from models.tokenizers.text import ByteTokenizer, load_text_tokenizer, train_bpe
from stages.text_tokenizer import TextTokenizer
from tests.stages.fake_job import FakeJob, table_of

SCHEMA = pa.schema([("text", pa.string()), ("held_out", pa.bool_())])


def job(folder: Path, order: int = 1) -> FakeJob:
    said = [{"text": f"a red star left of a blue circle {i}", "held_out": False} for i in range(30)]
    secret = [{"text": "zyxwvut zyxwvut zyxwvut", "held_out": True} for _ in range(50)]
    captions, texts = table_of(said + secret, SCHEMA, "captions"), table_of(said[:9], SCHEMA, "texts")
    return FakeJob(folder, {"captions": captions.take(list(range(80))[::order]), "texts": texts})


def loaded(made: FakeJob):
    last = made.checkpoints.latest()
    assert last is not None
    with made.checkpoints.fetch(last) as folder:
        return load_text_tokenizer(folder)


def test_a_bpe_is_trained_on_what_is_not_held_out_and_is_the_same_in_any_order(tmp_path: Path) -> None:
    stage, one, two = TextTokenizer(size=300), job(tmp_path / "1"), job(tmp_path / "2", -1)
    (row,) = stage.run(one)
    list(stage.run(two))
    tokenizer = loaded(one)
    assert row["kind"] == "bpe" and row["size"] == tokenizer.size <= 300
    assert pa.Table.from_pylist([row], TextTokenizer.schema).num_rows == 1
    assert tokenizer.digest == loaded(two).digest
    assert len(tokenizer.encode("a red star left of a blue circle")) < 12
    assert len(tokenizer.encode("zyxwvut")) == 7  # never seen: bytes
    assert list(stage.run(job(tmp_path / "1"))) == [row]


def test_bytes_and_a_file_need_no_training(tmp_path: Path) -> None:
    (row,) = TextTokenizer(kind="bytes").run(plain := job(tmp_path / "bytes"))
    assert row["size"] == 256 and loaded(plain).digest == ByteTokenizer.digest
    given = train_bpe(["ab ab ab"], 258, tmp_path / "given.json")
    (row,) = TextTokenizer(kind="file", file=str(tmp_path / "given.json")).run(made := job(tmp_path / "file"))
    (tmp_path / "given.json").unlink()
    assert loaded(made).digest == given.digest and row["size"] == given.size


def test_the_key_holds_what_is_used_and_a_file_by_content(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    files = [str(tmp_path / name / "tokenizer.json") for name in ("one.json", "two.json")]
    one, two = (TextTokenizer(kind="file", file=file).settings() for file in files)
    assert one == two and one["file"].startswith("sha256:")
    assert TextTokenizer(kind="bytes", size=300).settings() == TextTokenizer(kind="bytes", size=400).settings()
    assert TextTokenizer(size=300).settings() != TextTokenizer(size=400).settings()


def test_what_cannot_be_is_one_sentence() -> None:
    with pytest.raises(UserError, match="give 256 or more"):
        TextTokenizer(size=100)
    with pytest.raises(UserError, match=r"write text_tokenizer.file=PATH"):
        TextTokenizer(kind="file")
