"""Text tokenizers: bytes lose nothing; a tokenizer.json is known by its digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.tokenizers.text import ByteTokenizer, load_text_tokenizer


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
    tokenizer = load_text_tokenizer(str(path))
    assert tokenizer.size == 4 and tokenizer.encode("a red star") == [0, 1, 2]
    load_text_tokenizer(str(path), tokenizer.digest)
    with pytest.raises(ValueError, match="restore the file"):
        load_text_tokenizer(str(path), "0" * 64)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_text_tokenizer(str(tmp_path / "none.json"))
