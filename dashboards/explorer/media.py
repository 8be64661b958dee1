"""Media of rows: bytes for a player, by ranges; frames and thumbnails as JPEG."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

from dashboards.explorer.root import Cache, Root, key_of
from infra.types import BadRow, Snapshot, UserError

MAX_SIDE = 1024
CHUNK = 1 << 20
"""Most bytes of an answer to a range that has no end: a player asks again."""
DECODERS = threading.Semaphore(4)
_THUMBS = Cache(64 << 20)
_SIGNS: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"ftypavif", 4, "image/avif"),
    (b"ftyp", 4, "video/mp4"),
    (b"\x1aE\xdf\xa3", 0, "video/webm"),
)
"""What bytes begin with, where, and the one type that a browser is told; all else is a download."""


def kind_of(head: bytes) -> str:
    """The media type, by the bytes themselves."""
    return next((kind for sign, at, kind in _SIGNS if head[at:].startswith(sign)), "application/octet-stream")


def part(blob: Any, asked: str | None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and bytes of one blob, or of the range that a player asked for."""
    size = blob.size()
    kind = kind_of(blob.read(16))
    headers = {"content-type": kind, "accept-ranges": "bytes", "cache-control": "private, max-age=3600"}
    if kind == "application/octet-stream":
        headers["content-disposition"] = "attachment"
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not found or not any(found.groups()):
        blob.seek(0)
        return 200, headers, blob.read(size)
    start, end = found.groups()
    first = int(start) if start else max(0, size - int(end))
    last = min(size - 1, int(end) if start and end else first + CHUNK - 1 if start else size - 1)
    if first >= size or last < first:
        return 416, headers | {"content-range": f"bytes */{size}"}, b""
    blob.seek(first)
    headers["content-range"] = f"bytes {first}-{last}/{size}"
    return 206, headers, blob.read(last - first + 1)


def frame(root: Root, snapshot: Snapshot, key: str, number: int, of: int, side: int) -> bytes:
    """JPEG of the middle of the `number`-th of `of` even stretches of a clip (0 of 1: the middle frame)."""
    if not (0 <= number < of <= 32 and 16 <= side <= MAX_SIDE):
        raise UserError(f"frame {number} of {of} at {side} pixels: give 0 to 31 of at most 32, 16 to {MAX_SIDE} pixels")
    name = (snapshot, key, of, side)
    pictures: list[bytes] = _THUMBS.get(
        name, lambda: _frames(root, snapshot, key, of, side), lambda p: sum(map(len, p))
    )
    return pictures[min(number, len(pictures) - 1)]


def _frames(root: Root, snapshot: Snapshot, key: str, of: int, side: int) -> list[bytes]:
    from stages import media

    name = key_of(key)
    columns = root.columns(snapshot)
    rows = root.at(snapshot, [root.place(snapshot, name)], ["key", "source_kind", "num_frames"])
    blob = root.blob(snapshot, "media", name)
    data = blob.read(blob.size()) if blob is not None else b""
    if not data:
        raise UserError(f"{key} has no media")
    about = rows[0]
    is_video = kind_of(data[:16]).startswith("video/") or kind_of(data[:16]) == "image/gif"
    kind = about.get("source_kind") if "source_kind" in columns else "video" if is_video else "image"
    with DECODERS:
        try:
            pictures = media.evenly(data, kind or "image", max(1, about.get("num_frames") or of), of, side)
        except BadRow as error:
            raise UserError(f"{key} cannot be decoded: {error}") from None
        return [_jpeg(picture, side) for picture in pictures]


def _jpeg(picture: Any, side: int) -> bytes:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return sink.getvalue()
