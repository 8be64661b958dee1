"""The text tokenizer: trained on the texts and captions, or one that is given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.types import UserError
from stages import weights
from stages.base import Edge, Job, JobStage, Row, above_zero


@dataclass(frozen=True, kw_only=True)
class TextTokenizer(JobStage):
    """Makes the tokenizer that texts and captions are packed with, and keeps it as a checkpoint.

    bpe     a byte-level BPE trained on what is not held out; the same texts give the same file, in any order
    bytes   UTF-8 bytes; nothing is trained
    file    any Hugging Face tokenizer.json (Qwen's, Llama's ...), copied into the checkpoint: nothing later needs it

    Yields one row: the checkpoint.
    """

    writes: ClassVar[str] = "text_tokenizer"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("captions", columns=("text", "held_out"), held=True),
        Edge("texts", columns=("text", "held_out"), held=True),
    )
    content: ClassVar[tuple[str, ...] | None] = ("files_sha256",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("step", pa.int64()),
            ("manifest", pa.string()),
            ("manifest_sha256", pa.string()),
            ("files_sha256", pa.string()),
            ("kind", pa.string()),
            ("size", pa.int64()),
        ]
    )

    kind: Literal["bpe", "bytes", "file"] = "bpe"
    size: int = 2048
    """Ids of a trained BPE, 256 or more."""
    max_texts: int = 1_000_000
    """Most texts, and most captions, it is trained on: the first in order of key."""
    file: str | None = None
    """Path of a tokenizer.json, for `file`."""

    def __post_init__(self) -> None:
        above_zero(self, "max_texts")
        if self.size < 256:
            raise UserError(f"text_tokenizer.size is {self.size}: every byte has an id, give 256 or more")
        if self.kind == "file" and not (self.file and Path(self.file).expanduser().is_file()):
            raise UserError(f"text_tokenizer.file is {self.file}: write text_tokenizer.file=PATH of a tokenizer.json")

    def settings(self) -> dict[str, Any]:
        """What the chosen kind uses; the file by its digest."""
        used = {"bpe": ("size", "max_texts"), "bytes": (), "file": ("file",)}[self.kind]
        said = {name: getattr(self, name) if name in used else None for name in ("size", "max_texts", "file")}
        if self.kind == "file" and self.file:
            said["file"] = weights.named(self.file)
        return {"kind": self.kind} | said

    def run(self, job: Job) -> Iterator[Row]:
        """Train or copy, keep, name."""
        from models.tokenizers.text import BYTES, TOKENIZER_FILE, load_text_tokenizer, train_bpe

        last = job.checkpoints.latest()
        if last is None:
            with tempfile.TemporaryDirectory(dir=job.scratch) as name:
                folder = Path(name)
                if self.kind == "bpe":
                    train_bpe(self._texts(job), self.size, folder / TOKENIZER_FILE)
                elif self.file and self.kind == "file":
                    (folder / TOKENIZER_FILE).write_bytes(Path(self.file).expanduser().read_bytes())
                else:
                    (folder / BYTES).touch()
                size = load_text_tokenizer(folder).size
                last = job.checkpoints.save(0, folder, {"size": size})
        job.summary({"size": float(last.facts["size"])})
        yield {
            "step": 0,
            "manifest": last.manifest,
            "manifest_sha256": last.manifest_sha256,
            "files_sha256": last.files_sha256,
            "kind": self.kind,
            "size": int(last.facts["size"]),
            "parents": [],
            "label": f"text tokenizer {self.kind}, {last.facts['size']} ids",
        }

    def _texts(self, job: Job) -> Iterator[str]:
        for dataset in ("captions", "texts"):
            reader = job.reader(dataset)
            found: list[tuple[bytes, int]] = []
            row = 0
            for batch in reader.scan(["key", "held_out"], batch_rows=65_536):
                for key, held in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                    if not held:
                        found.append((key, row))
                    row += 1
            chosen = sorted(place for _, place in sorted(found)[: self.max_texts])
            for start in range(0, len(chosen), 1024):
                yield from reader.take(chosen[start : start + 1024], ["text"])["text"].to_pylist()
