"""The rest of a materialisation: every unit that gave no row, as Parquet, with its reason.

state         empty | filtered | quarantined
by            "select" (the pipeline's clauses) or "stage" (tried, and not tried again)
error_class   of a quarantined unit: the exception's class
trace_digest  16 hex digits that are equal for the same fault in many units
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("unit", pa.binary(16)),
        ("label", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("attempt", pa.int32()),
        ("by", pa.string()),
        ("error_class", pa.string()),
        ("trace_digest", pa.string()),
    ]
)
EMPTY = SCHEMA.empty_table()


def from_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rest entries of shards (units as hex) as a table."""
    entries = [{"by": "stage", **row, "unit": bytes.fromhex(row["unit"])} for row in rows]
    return pa.Table.from_pylist(entries, schema=SCHEMA)


def from_select(gated_out: pa.Table) -> pa.Table:
    """Units that failed the pipeline's select."""
    num = gated_out.num_rows
    columns = {
        "unit": gated_out["unit"],
        "label": gated_out["label"],
        "state": ["filtered"] * num,
        "reason": gated_out["reason"],
        "error": [None] * num,
        "attempt": [0] * num,
        "by": ["select"] * num,
        "error_class": [None] * num,
        "trace_digest": [None] * num,
    }
    return pa.table([pa.chunked_array(c) if isinstance(c, pa.ChunkedArray) else pa.array(c, SCHEMA.field(n).type) for n, c in columns.items()], schema=SCHEMA)  # fmt: skip  # noqa: E501


def join(tables: Iterable[pa.Table]) -> pa.Table:
    """All entries together."""
    return pa.concat_tables([EMPTY, *(t.select(SCHEMA.names) for t in tables)]).combine_chunks()


def digest(gated_out: pa.Table) -> str:
    """Names which units a select left out, and why: independent of order."""
    rows = sorted(zip(gated_out["unit"].to_pylist(), gated_out["reason"].to_pylist(), strict=True))
    text = b"".join(unit + (reason or "").encode() + b"\0" for unit, reason in rows)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def to_bytes(table: pa.Table) -> bytes:
    """Parquet."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Parquet back; columns that an older plait did not write are null."""
    table = pq.read_table(io.BytesIO(data))
    for field in SCHEMA:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def counts(table: pa.Table) -> dict[str, int]:
    """How many units per state; every state is named."""
    states = table["state"].to_pylist()
    return {state: states.count(state) for state in ("empty", "filtered", "quarantined")}


def by_reason(table: pa.Table) -> dict[str, int]:
    """How many units per "state: reason", most first."""
    tally: dict[str, int] = {}
    for state, reason in zip(table["state"].to_pylist(), table["reason"].to_pylist(), strict=True):
        name = state if not reason else f"{state}: {reason}"
        tally[name] = tally.get(name, 0) + 1
    return dict(sorted(tally.items(), key=lambda item: (-item[1], item[0])))
