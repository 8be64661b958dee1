"""Objects in a folder of the local (or a shared POSIX) file system."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from infra.bucket import Bucket, Entry, checked
from infra.types import RunError, TransientError, UserError

_CHUNK = 1 << 20


def _unreadable(error: OSError) -> None:
    """A folder that is not there holds nothing; one that may not be read would lose rows in silence."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): give read rights, or move it") from error


def _readable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _why_no_object(path: Path, is_folder: bool) -> str:
    """The reason why a file is not read or a folder not entered, or nothing."""
    if path.name.startswith("."):
        return f"hidden {'folder' if is_folder else 'file'}: plait does not read names that begin with a dot, rename it"
    if is_folder:
        link = "link to a folder: plait does not follow it, give that folder as a source or copy its files"
        return link if path.is_symlink() else ""
    if path.is_file():
        return ""
    if path.is_symlink():
        return "link to nothing: what it points at is not there"
    return "no file: a pipe, a socket or a device"


class LocalBucket(Bucket):
    """A folder of the local (or a shared POSIX) file system."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.uri = str(self.folder)

    def check_is_here(self) -> None:
        """See Bucket."""
        if not self.folder.is_dir():
            raise TransientError(f"the node {socket.gethostname()} has no folder {self.folder}: give s3://bucket/prefix, or a folder that every node has")  # fmt: skip  # noqa: E501

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See Bucket; atomic on any file system with hard links."""
        target = self.folder / checked(name)
        if target.exists():
            return target.read_bytes() == data
        temp = self._write_temp(target, data)
        try:
            os.link(temp, target)
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            temp.unlink()
        return True

    def put(self, name: str, data: bytes) -> None:
        """See Bucket; readers see the old bytes or the new ones."""
        target = self.folder / checked(name)
        self._write_temp(target, data).replace(target)

    def upload(self, name: str, source: Path) -> None:
        """See Bucket; on disk before the name is visible."""
        target = self.folder / checked(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".tmp-{os.urandom(6).hex()}")
        try:
            shutil.copyfile(source, temp)
            with temp.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise
        temp.replace(target)

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        try:
            return (self.folder / checked(name)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, name: str) -> None:
        """See Bucket."""
        (self.folder / checked(name)).unlink(missing_ok=True)

    def clear(self, prefix: str) -> None:
        """See Bucket."""
        shutil.rmtree(self.folder / checked(prefix), ignore_errors=True)

    def entries(self, prefix: str = "", after: str = "") -> Iterator[Entry]:
        """See Bucket; hidden files (temporary ones of ours among them) and what is no file are no objects."""
        start = self.folder / checked(prefix) if prefix else self.folder
        found = (entry for entry in self._walk(start) if not entry.left_out)
        return (entry for entry in found if entry.path.encode() > after.encode()) if after else found

    def listing(self) -> Iterator[Entry]:
        """See Bucket. A link to a file is that file; a link to a folder is not followed, so no loop can be entered."""
        return self._walk(self.folder)

    def _walk(self, folder: Path) -> Iterator[Entry]:
        """What is below a folder, by name: a folder stands where its name with a slash would."""
        try:
            with os.scandir(folder) as found:
                children = [(_readable(child.name), child.is_dir(), child) for child in found]
        except OSError as error:
            _unreadable(error)
            return
        for _, is_folder, child in sorted(children, key=lambda c: f"{c[0]}/".encode() if c[1] else c[0].encode()):
            path = Path(child.path)
            why = _why_no_object(path, is_folder)
            if is_folder and not why:
                yield from self._walk(path)
                continue
            stat = None if why else path.stat()
            size, stamp = (stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ctime_ns}") if stat else (0, why)
            yield Entry(_readable(path.relative_to(self.folder).as_posix()), size, stamp, why)

    def below(self, name: str) -> LocalBucket:
        """See Bucket."""
        return type(self)(self.folder / checked(name))

    def size(self, name: str) -> int | None:
        """See Bucket."""
        path = self._path(name)
        return path.stat().st_size if path.is_file() else None

    def local(self, name: str) -> AbstractContextManager[Path]:
        """See Bucket; the file itself: do not write to it."""
        return nullcontext(self._path(name))

    def part(self, name: str, offset: int, size_bytes: int, target: Path) -> None:
        """See Bucket."""
        with self._path(name).open("rb") as source, target.open("wb") as file:
            source.seek(offset)
            while size_bytes > 0 and (chunk := source.read(min(_CHUNK, size_bytes))):
                file.write(chunk)
                size_bytes -= len(chunk)

    def _path(self, name: str) -> Path:
        """The file of a name; a name that is not UTF-8 on disk is listed with \\xNN in place of the odd bytes."""
        path = self.folder / checked(name)
        if "\\x" in name and not path.exists():
            odd = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m.group(1).decode()), name.encode())
            return self.folder / os.fsdecode(odd)
        return path

    def _write_temp(self, target: Path, data: bytes) -> Path:
        temp = target.with_name(f".tmp-{os.urandom(6).hex()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temp.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise RunError(f"{target} cannot be written ({error.strerror}): make room or rights, then run the same command again") from error  # fmt: skip  # noqa: E501
        return temp
