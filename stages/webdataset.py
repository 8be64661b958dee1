"""Looking into tar shards as WebDataset lays them out: members with a common stem belong together. Not a stage.

Nothing is unpacked: a member is a range of bytes of the shard. What cannot be read as a member is named as lost,
and reading goes on at the next header that makes sense.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A range of bytes of a shard: a file, or (`name` empty) bytes that are no file any more."""

    name: str
    offset: int
    size_bytes: int
    damage: str | None = None
    """What is wrong with these bytes; None where nothing is."""

    @property
    def stem(self) -> str:
        """Folder and name up to the first dot: what the members of one sample have in common."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + (name.partition(".")[0] or name)


def members(path: Path) -> list[Member]:
    """Regular files of a tar and lost ranges, in order; empty where nothing in it is a tar."""
    total = path.stat().st_size
    found: list[Member] = []
    end = 0
    for info in _headers(path):
        found += _lost(path, end, info.offset)
        start, size = info.offset_data, info.size if info.isreg() else 0
        end = start + -(-size // _BLOCK) * _BLOCK
        there = min(size, max(0, total - start))
        damage = None
        if there < size:
            damage = f"The shard ends inside this member ({there:,} of {size:,} bytes are there): copy the shard again."
        if info.isreg() and not info.issparse():
            found.append(Member(str(PurePosixPath(info.name)).lstrip("/"), start, there, damage))
    return found + _lost(path, end, total) if found else []


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers one by one; blocks that are none are stepped over, and the end is where nothing more can be read."""
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as shard:
            while (info := shard.next()) is not None:
                yield info
    except tarfile.TarError:
        return


def _lost(path: Path, start: int, end: int) -> list[Member]:
    """The range between two members, where it holds anything but padding."""
    if end <= start:
        return []
    with path.open("rb") as file:
        file.seek(start)
        while start < end and not any(block := file.read(min(_BLOCK, end - start))):
            start += len(block)
    if start >= end:
        return []
    damage = f"{end - start:,} bytes at {start:,} are no member (a damaged header?): copy the shard again."
    return [Member("", start, end - start, damage)]
