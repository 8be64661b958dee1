"""What came with the files: captions and metadata from shards and JSONL, and the captions tied to their clips."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.base import BadRow, Edge, Filtered, Job, JobStage, Outcome, Row, RowStage

_FILE = ("file", "file_name", "filename", "path", "image", "video", "media")
_CAPTION = ("caption", "captions", "text", "description")
"""Names that JSONL and JSON of public datasets use; the first that is there counts."""
SOURCE = "source"
"""The captioner of a caption that came with its file."""


@dataclass(frozen=True, kw_only=True)
class Notes(RowStage):
    """One row per thing that a sidecar says of a file.

    about   the file it tells of: a path of the listing; for a member of a shard, path of the shard and stem
    what    "caption", or "metadata": everything else that a JSON object says, as JSON
    text    the caption, or the JSON

    A sidecar is a txt, caption or json beside a picture or film of the same stem in a shard, or a JSONL whose lines
    name their file (`file`, `file_name`, `path`, `image`, `video` ...), relative to the JSONL's folder. Lines of JSONL
    that name no file give nothing; a JSONL without any that does is filtered, one with a line that is no JSON is
    quarantined.
    """

    writes: ClassVar[str] = "notes"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("files", columns=("digest", "path", "about", "damage"), where="kind = 'sidecar'"),
    )
    content: ClassVar[tuple[str, ...] | None] = ("about", "what", "text")
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema([("about", pa.string()), ("what", pa.string()), ("text", pa.string())])

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Read each sidecar."""
        return [_noted(row) for row in rows]


def _noted(row: Row) -> Outcome:
    if row["damage"]:
        return BadRow(row["damage"])
    with row["raw"].local() as path:
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            return BadRow(f"It is not UTF-8 text (byte {error.start}): convert it.")
    suffix = posixpath.splitext(row["path"])[1].lower()
    try:
        if suffix == ".jsonl":
            return _lines(text, posixpath.dirname(row["path"])) or Filtered(
                f"none of its lines names a file: plait looks for {', '.join(_FILE)}"
            )
        if suffix == ".json":
            return _said(row["about"], json.loads(text))
    except (ValueError, TypeError) as error:
        return BadRow(f"It is no JSON ({error}).")
    return [_note(row["about"], "caption", text)] if text else []


def _lines(text: str, folder: str) -> list[Row]:
    notes: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        name = next((told[n] for n in _FILE if isinstance(told.get(n), str)), None) if isinstance(told, dict) else None
        if name:
            notes += _said(posixpath.normpath(posixpath.join(folder, name)), told)
    return notes


def _said(about: str, told: Any) -> list[Row]:
    """Captions first, then all that is left as one row of metadata."""
    if not isinstance(told, dict):
        raise TypeError("an object is wanted")
    named = next((n for n in _CAPTION if told.get(n)), None)
    given = told[named] if named else []
    captions = [str(one).strip() for one in (given if isinstance(given, list) else [given])]
    notes = [_note(about, "caption", one) for one in dict.fromkeys(captions) if one]
    left = {name: value for name, value in told.items() if name not in (*_FILE, named)}
    return notes + ([_note(about, "metadata", json.dumps(left, sort_keys=True, ensure_ascii=False))] if left else [])


def _note(about: str, what: str, text: str) -> Row:
    return {"about": about, "what": what, "text": text, "label": f"{what} of {about}"}


@dataclass(frozen=True, kw_only=True)
class SourceCaptions(JobStage):
    """Captions that came with files, tied to the clips they describe; captioner "source".

    A caption tells of a whole picture or film, so it goes to the clip that is all of it. Left out with a reason: a
    caption of a film with several clips, of a file that is not in the source, and of one that gave no clip. The same
    caption from several sidecars is kept once. Parents are the clip and the note.
    """

    writes: ClassVar[str] = "source_captions"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("digest", "held_out")),
        Edge("notes", columns=("about", "text"), where="what = 'caption'"),
        Edge("files", columns=("path", "digest", "container"), where="kind in ('video', 'image')"),
    )
    content: ClassVar[tuple[str, ...] | None] = ("text",)
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("text", pa.string()),
            ("captioner", pa.string()),
            ("prompt_digest", pa.string()),
            ("num_frames", pa.int32()),
            ("held_out", pa.bool_()),
        ]
    )

    def run(self, job: Job) -> Iterator[Row]:
        """One row per clip and caption, in order of their keys."""
        digests = _digests(job)
        clips: dict[str, list[Row]] = {}
        for row in _rows(job, "clips", ("key", "digest", "held_out", "label")):
            clips.setdefault(row["digest"], []).append(row)
        seen: set[tuple[bytes, str]] = set()
        for note in sorted(_rows(job, "notes", ("key", "about", "text", "label")), key=lambda one: one["key"]):
            found = digests.get(note["about"])
            of_it = clips.get(found or "", [])
            if len(of_it) != 1:
                job.reject(note["key"], note["label"], _why_not(found, len(of_it)))
                continue
            (clip,) = of_it
            if (clip["key"], note["text"]) in seen:
                job.reject(note["key"], note["label"], "another sidecar says the same")
                continue
            seen.add((clip["key"], note["text"]))
            caption = {"text": note["text"], "captioner": SOURCE, "prompt_digest": "", "num_frames": 0}
            yield caption | {
                "held_out": clip["held_out"],
                "label": clip["label"],
                "parents": [clip["key"], note["key"]],
            }


def _why_not(digest: str | None, num_clips: int) -> str:
    if digest is None:
        return "it tells of a file that is not in the source"
    return "it tells of a film cut into several clips" if num_clips else "it tells of a file that gave no clip"


def _digests(job: Job) -> dict[str, str]:
    """Digest by what a note may call a file: its path and, in a shard, its path without suffixes."""
    found: dict[str, str] = {}
    for row in sorted(_rows(job, "files", ("path", "digest", "container")), key=lambda one: one["path"]):
        found[row["path"]] = row["digest"]
        if row["container"]:
            folder, name = posixpath.split(row["path"])
            found.setdefault(posixpath.join(folder, name.partition(".")[0]), row["digest"])
    return found


def _rows(job: Job, dataset: str, columns: Sequence[str]) -> Iterator[Row]:
    for batch in job.reader(dataset).scan(columns):
        yield from batch.to_pylist()
