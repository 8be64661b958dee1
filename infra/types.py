"""Plain values that every room may use. Imports nothing heavy and nothing of ours.

Errors are one sentence: what was given, what is allowed, what to type next.

    PlaitError
    |-- UserError       bad input from a person: exit code 2
    |-- RunError        a run that could not finish: exit code 1
    |   `-- StoppedError    because somebody asked it to stop
    |-- TransientError  the world is at fault, the row is not: never quarantined, the shard stays undone
    `-- BadRow          the row is at fault: quarantined with this sentence as its reason
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]
"""One row, column name to Python value. Engine-made columns: `key` (16 bytes), `parents`, `label`."""


class PlaitError(Exception):
    """Root of every error that plait raises on purpose."""


class UserError(PlaitError):
    """Bad input from a person."""


class RunError(PlaitError):
    """The run could not finish; the sentence holds the command that goes on."""


class StoppedError(RunError):
    """Somebody asked the run to stop: `plait cancel`, a signal."""


class DamagedError(RunError):
    """What is stored is not what was published: a file is gone, or its bytes have changed."""


class TransientError(PlaitError):
    """The world failed (connection, timeout, 429, 5xx, memory): try the shard again later."""


class BadRow(PlaitError):  # noqa: N818
    """This row cannot be processed; the sentence becomes its reason in the quarantine.

    `process` may raise it (one row at fault) or return it in the row's place (batched calls).
    """


@dataclass(frozen=True)
class Filtered:
    """A row that the stage leaves out on purpose, with the reason a person can act on."""

    reason: str


Outcome = list[Row] | Filtered | BadRow
"""What became of one input row: its output rows (none: "empty"), left out, or at fault."""


@dataclass(frozen=True)
class Snapshot:
    """An immutable reference to a dataset: which version, and the digest of the keys in it.

    `digest` is the sum mod 2^128 of H(key) over the rows, as 32 hex digits: independent of order,
    shards, files and place.
    """

    name: str
    uri: str
    version: int
    digest: str
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for the ledger, MLflow and `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: a manifest of files with their SHA-256."""

    step: int
    manifest: str
    """Path of the manifest, relative to the root."""
    manifest_sha256: str
    files_sha256: str
    """Names the weights themselves: SHA-256 over the files' names and digests, whoever wrote them and where."""
    facts: Mapping[str, Any]
    """What the trainer wrote into the manifest: tokens seen, loss, data position, settings."""


_SECRET_NAMES = re.compile("(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY)(?!.*_(PATH|FILE|URI|URL)$)")
_MIN_SECRET_CHARS = 6
"""Shorter values are words like "test": taking them out would garble every line."""
_SECRET_PARAMETER = re.compile(r"(?i)([?&][\w-]*(?:token|password|secret|signature|credential|key|sig)=)[^&\s#]+")


def without_secrets(text: str) -> str:
    """Text without the user part and the secret parameters of addresses, and without the values of secret environment
    variables (keys, tokens, passwords by their names), for whatever is written down or shown."""
    text = _SECRET_PARAMETER.sub(r"\1***", re.sub(r"://[^/@\s]+@", "://***@", text))
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_CHARS and value in text and _SECRET_NAMES.search(name.upper()):
            text = text.replace(value, "***")
    return text


def now_utc() -> str:
    """The present time, ISO 8601 in UTC to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
