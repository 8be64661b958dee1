"""Text tokenizers: plain bytes, which need no files, or any Hugging Face tokenizer.json.

A tokenizer is named by a word: "bytes", or the path of a tokenizer.json; its digest says what it really was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

BYTES = "bytes"


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255; lossless for every text."""

    size = 256
    digest = hashlib.sha256(b"plait bytes 1").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return bytes(ids).decode(errors="replace")


class FileTokenizer:
    """A tokenizer.json, run by Hugging Face `tokenizers`; special tokens are ours, so none are added."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        data = path.read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()
        self._tokenizer = Tokenizer.from_str(data.decode())
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def load_text_tokenizer(name: str, digest: str = "") -> ByteTokenizer | FileTokenizer:
    """The tokenizer called `name` ("bytes" or a path); refuses one whose digest is not the expected one."""
    if name == BYTES:
        tokenizer: ByteTokenizer | FileTokenizer = ByteTokenizer()
    elif Path(name).is_file():
        tokenizer = FileTokenizer(Path(name))
    else:
        raise FileNotFoundError(f"text tokenizer is {name!r}; give {BYTES!r} or the path of a tokenizer.json")
    if digest and digest != tokenizer.digest:
        raise ValueError(
            f"text tokenizer {name!r} has digest {tokenizer.digest[:12]}, the tokens were made with {digest[:12]};"
            " restore the file they were made with"
        )
    return tokenizer
