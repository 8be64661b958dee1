"""Text tokenizers: bytes lose nothing; a tokenizer.json is known by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.tokenizers.text import ByteTokenizer, FileTokenizer, load_text_tokenizer, train_bpe


@given(st.text())
def test_bytes_lose_nothing(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.size for i in ids)


def test_a_file_is_loaded_and_known_by_its_digest(tmp_path: Path) -> None:
    made = Tokenizer(WordLevel({"a": 0, "red": 1, "star": 2, "?": 3}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    tokenizer = load_text_tokenizer(tmp_path)
    assert tokenizer.size == 4 and tokenizer.encode("a red star") == [0, 1, 2]
    assert tokenizer.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_text_tokenizer(tmp_path / "none")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    texts = [f"the {colour} {shape} left of a {shape}" for colour in ("red", "blue") for shape in ("star", "circle")]
    return train_bpe(texts * 20, 300, tmp_path_factory.mktemp("bpe") / "tokenizer.json")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_trained_bpe_loses_nothing_of_any_text(bpe: FileTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and all(0 <= i < bpe.size for i in ids)


def test_a_trained_bpe_is_the_same_for_the_same_texts_in_any_order_and_shorter_than_bytes(
    bpe: FileTokenizer, tmp_path: Path
) -> None:
    texts = ["a red star", "a blue circle", "star " * 9, "Ünïcödé 漢字"]
    one, two = (train_bpe(given, 270, tmp_path / f"{i}.json") for i, given in enumerate((texts, texts[::-1])))
    assert one.digest == two.digest and (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert one.size <= 270
    assert len(bpe.encode("the red star left of a circle")) <= 10
    with pytest.raises(ValueError, match="give 256 or more"):
        train_bpe(texts, 200, tmp_path / "small.json")


@pytest.mark.shared
def test_real_text_is_coded_in_fewer_tokens_than_bytes_and_comes_back(shared: Path, tmp_path: Path) -> None:
    texts = [p.read_text(errors="ignore") for p in sorted((shared / "text").rglob("*.txt"))[:20]]
    tokenizer = train_bpe(texts, 2000, tmp_path / "tokenizer.json")
    for text in texts:
        part = text[:5000]
        ids = tokenizer.encode(part)
        assert tokenizer.decode(ids) == part and (len(part) < 100 or len(ids) < 0.7 * len(part.encode()))
