"""From what lies in the source to one row per distinct content: `files`, then `videos`, `images`, `texts`.

What came with them (captions, metadata) is in `notes` (stages/notes.py).

Headers lie, so videos are decoded to the end, and every number is what was decoded. Each file ends as a row, as
filtered (a kind that plait does not read) or in quarantine with a sentence that a person can act on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from stages import media, webdataset
from stages.base import BadRow, Edge, Filtered, Outcome, Row, RowStage, held_out
from stages.probe import probe

VIDEO = (
    ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts")
    + ("flv", "wmv", "ogv", "3gp", "mxf", "gif")
)  # fmt: skip
IMAGE = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "avif", "ppm", "pgm")
TEXT = ("txt", "md", "text")
_SUFFIXES = (("video", VIDEO), ("image", IMAGE), ("text", TEXT), ("shard", ("tar",)), ("sidecar", ("jsonl",)))
KINDS = {suffix: kind for kind, suffixes in _SUFFIXES for suffix in suffixes}
SIDECAR = ("txt", "caption", "json")
"""Members of a shard that tell of the picture or film of the same stem."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Files(RowStage):
    """One row per object of the source as listed, and one per member of a tar shard.

    Its units come from the engine's listing, not from a dataset. The kind goes by the suffix alone; whether the
    content is what the suffix says is found by the stage of that kind. An object of a suffix that plait does not
    read is filtered, with the list of those it does. A shard (tar, not compressed, as WebDataset writes them) gives

    video, image, text   a member, read like a file of its own; its path is the shard's and the member's
    sidecar              captions (txt, caption) and metadata (json) of the picture or film with the same stem
                         (`about`); a jsonl, in a shard or not, names its files itself and has no `about`
    other                a member that plait does not read
    lost                 bytes between members that are no member any more

    container, offset    where the member's bytes are: path of the shard, first byte; null for a file of its own
    damage               what is wrong with a member cut short, or with lost bytes; null where nothing is

    What lies among the files and is none (hidden files and folders, links to folders or to nothing, pipes, sockets) is
    filtered with its reason.
    """

    writes: ClassVar[str] = "files"
    content: ClassVar[tuple[str, ...] | None] = ("path", "digest")
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("path", pa.string()),
            ("size_bytes", pa.int64()),
            ("stamp", pa.string()),
            ("digest", pa.string()),
            ("kind", pa.string()),
            ("unit", pa.binary(16)),
            pa.field("container", pa.string(), nullable=True),
            pa.field("offset", pa.int64(), nullable=True),
            pa.field("about", pa.string(), nullable=True),
            pa.field("damage", pa.string(), nullable=True),
        ]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Hash each file; the SHA-256 is streamed, 1 MiB at a time."""
        return [_listed(row) for row in rows]


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower().lstrip(".")


def _listed(row: Row) -> Outcome:
    if row.get("left_out"):
        return Filtered(row["left_out"])
    suffix = _suffix(row["path"])
    kind = KINDS.get(suffix)
    if kind is None:
        name = f".{suffix}" if suffix else "(no suffix)"
        known = f"videos ({' '.join(VIDEO)}), images ({' '.join(IMAGE)}), text ({' '.join(TEXT)}), tar, jsonl"
        return Filtered(f"unknown kind {name}: plait reads {known}")
    if kind == "shard":
        return _opened(row)
    with row["raw"].open() as file:
        return [_file(row["path"], row["size_bytes"], row["stamp"], kind, file)]


def _file(path: str, size_bytes: int, stamp: str, kind: str, file: BinaryIO, **place: Any) -> Row:
    """The row of one file: the next `size_bytes` of `file`, hashed."""
    digest = hashlib.sha256()
    left = size_bytes
    while left and (chunk := file.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    known = {"path": path, "size_bytes": size_bytes, "stamp": stamp, "kind": kind}
    none = {"container": None, "offset": None, "about": None, "damage": None}
    return {**known, "digest": digest.hexdigest(), "unit": digest.digest()[:16], **none, **place}


def _opened(row: Row) -> Outcome:
    """One row per member of a shard; what tells of a picture or film is tied to it by its stem."""
    with row["raw"].local() as path:
        found = webdataset.members(path)
        if not found:
            return BadRow(
                "It holds no member that can be read: it is no tar, is compressed (unpack it first), or empty."
            )
        pictured = {one.stem for one in found if KINDS.get(_suffix(one.name)) in ("video", "image")}
        with path.open("rb") as file:
            return [_member(row, one, one.stem in pictured, file) for one in found]


def _member(row: Row, member: webdataset.Member, is_pictured: bool, file: BinaryIO) -> Row:
    suffix = _suffix(member.name)
    kind = KINDS.get(suffix, "other") if member.name else "lost"
    kind = "other" if kind == "shard" else kind
    about = None
    if is_pictured and suffix in SIDECAR:
        kind, about = "sidecar", f"{row['path']}/{member.stem}"
    name = f"{row['path']}/{member.name or f'(lost at {member.offset})'}"
    file.seek(member.offset)
    place = {"container": row["path"], "offset": member.offset, "about": about, "damage": member.damage}
    return {"label": name, **_file(name, member.size_bytes, row["stamp"], kind, file, **place)}


def _contents(kind: str) -> tuple[Edge, ...]:
    return (Edge("files", columns=("digest", "size_bytes", "damage"), unit="unit", where=f"kind = '{kind}'"),)


@dataclass(frozen=True, kw_only=True)
class Videos(RowStage):
    """One row per distinct video, measured by decoding all of it (without the deblocking filter: only times count).

    num_frames   frames decoded;  fps: their average rate, 1/s
    width, height   pixels of the upright picture, before `sar` (width over height of a pixel, "128:117") is applied
    rotation     degrees counter-clockwise that the stored picture is turned to be upright: 0, 90, 180, 270
    duration_s   last time stamp minus first, plus one frame;  first_pts_s: where the time stamps begin
    warning      what is wrong with a file that is still usable up to a point; null where nothing is

    A file without one decodable frame, or without a video stream, goes to quarantine.
    """

    writes: ClassVar[str] = "videos"
    inputs: ClassVar[tuple[Edge, ...]] = _contents("video")
    content: ClassVar[tuple[str, ...] | None] = ("digest",)
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("digest", pa.string()),
            ("container", pa.string()),
            ("codec", pa.string()),
            ("fps", pa.float64()),
            ("num_frames", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("rotation", pa.int32()),
            ("sar", pa.string()),
            ("duration_s", pa.float64()),
            ("first_pts_s", pa.float64()),
            ("variable_fps", pa.bool_()),
            ("has_audio", pa.bool_()),
            ("size_bytes", pa.int64()),
            ("held_out", pa.bool_()),
            pa.field("warning", pa.string(), nullable=True),
        ]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Probe each video."""
        return [_one(row, probe) for row in rows]


def _one(row: Row, measure: Any) -> Outcome:
    """Measure one file; a file at fault takes its own place only."""
    if row.get("damage"):
        return BadRow(row["damage"])
    try:
        with row["raw"].local() as path:
            found = measure(path)
    except BadRow as bad:
        return bad
    size = {"size_bytes": row["size_bytes"]} if measure is probe else {}
    return [{"digest": row["digest"], **found, **size, "held_out": held_out(row["digest"])}]


@dataclass(frozen=True, kw_only=True)
class Images(RowStage):
    """One row per distinct image, decoded whole. Width and height in pixels after its EXIF orientation."""

    writes: ClassVar[str] = "images"
    inputs: ClassVar[tuple[Edge, ...]] = _contents("image")
    content: ClassVar[tuple[str, ...] | None] = ("digest",)
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("digest", pa.string()),
            ("format", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("mode", pa.string()),
            ("held_out", pa.bool_()),
        ]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Decode each image."""
        return [_one(row, _look) for row in rows]


def _look(path: Path) -> Row:
    image = media.loaded(path)
    return {
        "format": (image.format or "unknown").lower(),
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
    }


@dataclass(frozen=True, kw_only=True)
class Texts(RowStage):
    """One row per distinct text: UTF-8 (a byte order mark is dropped), line ends as "\\n", blank ends cut."""

    writes: ClassVar[str] = "texts"
    inputs: ClassVar[tuple[Edge, ...]] = _contents("text")
    content: ClassVar[tuple[str, ...] | None] = ("digest",)
    reads_raw: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [("digest", pa.string()), ("text", pa.string()), ("num_chars", pa.int64()), ("held_out", pa.bool_())]
    )

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Read each text."""
        return [_one(row, _read) for row in rows]


def _read(path: Path) -> Row:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"It is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}): convert it."
        ) from error
    if "\0" in text:
        raise BadRow("It is binary data under the name of a text (it holds NUL bytes).")
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise BadRow("The text is empty.")
    return {"text": text, "num_chars": len(text)}
