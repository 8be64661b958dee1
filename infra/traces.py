"""What names a fault: its class, and a digest that is equal for the same fault in many rows."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path

from infra.types import BadRow

DIGEST_CHARS = 16
VALUES = re.compile(r"0x[0-9a-fA-F]+|'[^']*'|\"[^\"]*\"|\b[0-9a-f]{8,}\b|\d+")


def error_class(error: BaseException) -> str:
    """The exception's class; one of a library with its module."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") or isinstance(error, BadRow) else f"{kind.__module__}.{kind.__qualname__}"  # fmt: skip  # noqa: E501


def trace_digest(error: BaseException) -> str:
    """The first 16 hex digits of the SHA-256 over the class and the frames: file, function and text of each line.

    No line numbers, folders or messages: they differ between rows, machines and edits elsewhere in a file. The
    sentence of a BadRow is what tells its faults apart: it counts, without the numbers and quoted values in it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(f.filename).name} {f.name} {f.line or ''}" for f in frames]
    said = [VALUES.sub("#", str(error))] if isinstance(error, BadRow) else []
    return hashlib.sha256("\n".join([error_class(error), *lines, *said]).encode()).hexdigest()[:DIGEST_CHARS]
