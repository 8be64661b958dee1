"""Text tokenizers: plain bytes, a byte-level BPE of our own training, or any Hugging Face tokenizer.json.

A folder holds one, as tokenizer.json or, of bytes, as an empty file; its digest says what it really is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BYTES, TOKENIZER_FILE = "bytes", "tokenizer.json"


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


def load_text_tokenizer(folder: Path) -> ByteTokenizer | FileTokenizer:
    """The tokenizer of a checkpoint folder: its tokenizer.json, or plain bytes where it says so."""
    if (folder / TOKENIZER_FILE).is_file():
        return FileTokenizer(folder / TOKENIZER_FILE)
    if (folder / BYTES).is_file():
        return ByteTokenizer()
    raise FileNotFoundError(
        f"there is no text tokenizer in {folder}: it holds {TOKENIZER_FILE}, or a file called {BYTES}"
    )


def train_bpe(texts: Iterable[str], size: int, path: Path) -> FileTokenizer:
    """Train a byte-level BPE of `size` ids on texts and write it as a tokenizer.json, the same file for the same texts.

    It loses nothing: no normaliser, no prefix space, every byte has an id (Hugging Face `tokenizers`; GPT-2's scheme).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet):
        raise ValueError(f"a byte-level BPE of {size} ids is too small: give {len(alphabet)} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[attr-defined]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(sorted(texts), trainer)
    path.write_text(tokenizer.to_str(pretty=True))
    return FileTokenizer(path)
