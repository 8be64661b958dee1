"""Units of work of a stage: which rows of its inputs it is to see, and why the others are left out.

A unit is named by 16 bytes: the key of an input row, or (for `files`) the content that several rows stand for.
All set operations are Arrow's hash kernels: 10^7 against 10^7 keys takes seconds (benchmarks/planning.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from infra.digests import digest_of
from infra.store import Store
from infra.types import Snapshot
from pipelines.graph import Select
from stages.base import Edge

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them

KEY_TYPE = pa.binary(16)
NO_SCORE = "no score"
TAKEN_DOWN = "taken down by plait forget"


@dataclass(frozen=True)
class Units:
    """The units of one edge at one snapshot."""

    dataset: str
    keys: pa.Array
    """fixed_size_binary(16), distinct."""
    positions: np.ndarray
    """int64, of the same length: each unit's row in the snapshot's order."""
    digest: str
    """What enters the key: the digest over `keys`, so of the rows that *pass*."""
    gated_out: pa.Table = field(default_factory=lambda: _gated_out([], [], []))
    """unit, label, reason: rows that fail the select, with the names of the failing clauses."""


def _gated_out(units: list[bytes] | pa.Array, labels: list[str], reasons: list[str]) -> pa.Table:
    return pa.table({"unit": pa.array(units, KEY_TYPE), "label": pa.array(labels, pa.string()), "reason": pa.array(reasons, pa.string())})  # fmt: skip  # noqa: E501


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def first_parents(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The first parent of each row: for row stages, the unit that gave the row. Rows without parents are left out."""
    array = flat(column)
    array = array.filter(pc.greater(pc.list_value_length(array), 0))
    return pc.list_element(array, 0) if len(array) else pa.array([], KEY_TYPE)


def parent_positions(store: Store, units: np.ndarray, snapshot: Snapshot, parents: Snapshot) -> np.ndarray:
    """Where the first parents of the units (positions in the snapshot) lie in theirs; -1 where one is gone.

    One scan of two columns of keys, in the driver, when the shards are planned: workers search for nothing. 10^7 rows
    with 10^7 parents take 7 s and 1.3 GB (two busy cores, local disk).
    """
    named = flat(store.scan(snapshot, ["parents"])["parents"]).take(pa.array(units))
    first = pc.list_flatten(pc.list_slice(named, 0, 1, return_fixed_size_list=True))
    at = pc.index_in(first, value_set=flat(store.scan(parents, ["key"])["key"]))
    return np.asarray(pc.fill_null(at, -1)).astype(np.int64)


def edge_units(
    store: Store,
    edge: Edge,
    snapshot: Snapshot,
    select: Select | None,
    scores: Snapshot | None,
    denied: Sequence[str] = (),
) -> Units:
    """The units of an edge: rows inside `where`, one per distinct unit, that pass the select.

    `denied` holds the SHA-256 of raw content that was taken down, for edges on the listing.
    """
    columns = {"unit": edge.unit, "inside": f"coalesce(({edge.where}), false)" if edge.where else "true"}
    if select or denied:
        columns["label"] = "label"
    if denied:
        columns["digest"] = "digest"
    table = store.scan(snapshot, columns)
    keys = flat(table["unit"])
    inside = np.flatnonzero(np.asarray(flat(table["inside"])))
    if edge.unit != "key":
        inside = inside[_first_of_each(keys.take(pa.array(inside)))]
    keys = keys.take(pa.array(inside))
    gated_out = _gated_out([], [], [])
    if select and scores:
        reasons = _verdicts(store, keys, select, scores)
        fails = pc.is_valid(reasons)
        labels = flat(table["label"]).take(pa.array(inside)).filter(fails)
        gated_out = pa.table({"unit": keys.filter(fails), "label": labels, "reason": reasons.filter(fails)})
        passes = np.flatnonzero(np.asarray(pc.invert(fails)))
        keys, inside = keys.take(pa.array(passes)), inside[passes]
    if denied:
        fails = pc.is_in(flat(table["digest"]).take(pa.array(inside)), value_set=pa.array(denied))
        labels = flat(table["label"]).take(pa.array(inside)).filter(fails)
        gated_out = _gated_out(keys.filter(fails), labels.to_pylist(), [TAKEN_DOWN] * len(labels))
        stays = np.flatnonzero(np.asarray(pc.invert(fails)))
        keys, inside = keys.take(pa.array(stays)), inside[stays]
    digest = snapshot.digest if edge.unit == "key" and len(keys) == snapshot.rows else digest_of(keys)
    return Units(edge.dataset, keys, inside.astype(np.int64), digest, gated_out)


def _first_of_each(keys: pa.Array) -> np.ndarray:
    first = pc.index_in(keys.unique(), value_set=keys) if len(keys) else pa.array([], pa.int32())
    return np.sort(np.asarray(first)).astype(np.int64)


def _verdicts(store: Store, keys: pa.Array, select: Select, scores: Snapshot) -> pa.Array:
    """Per key: null where it passes, else the failing clauses' names, joined; "no score" where nothing scored it."""
    names = list(select.clauses)
    columns = {"parents": "parents"} | {f"c{i}": f"coalesce(({select.clauses[n]}), false)" for i, n in enumerate(names)}
    table = store.scan(scores, columns)
    if not len(table):
        return pa.array([NO_SCORE] * len(keys), pa.string())
    at = pc.index_in(keys, value_set=first_parents(table["parents"]))
    fails = sum(np.asarray(pc.invert(flat(table[f"c{i}"]))).astype(np.int64) << i for i in range(len(names)))
    masks = np.broadcast_to(fails, len(table))[np.asarray(pc.fill_null(at, 0))]
    masks = np.where(np.asarray(pc.is_null(at)), -1, masks)
    return _named(masks, names)


def _named(masks: np.ndarray, names: list[str]) -> pa.Array:
    """Bit masks of failing clauses as text: one text per distinct mask."""
    distinct, back = np.unique(masks, return_inverse=True)
    texts = []
    for mask in distinct.tolist():
        failing = [name for i, name in enumerate(names) if mask >> i & 1]
        texts.append(NO_SCORE if mask < 0 else ", ".join(failing) or None)
    return pa.array(texts, pa.string()).take(pa.array(back))


@dataclass(frozen=True)
class Base:
    """A published materialisation of the same recipe, as the planner compares with it."""

    snapshot: Snapshot
    done: dict
    units: pa.Array
    """First parent of each row, in the snapshot's order."""
    tried: pa.Table
    """unit, label, state, reason, error, attempt of units that the stage itself tried and that gave no row."""


@dataclass(frozen=True)
class Difference:
    """What to do so that the base becomes what is wanted."""

    compute: np.ndarray
    """Positions in the wanted keys."""
    drop: np.ndarray
    """Row positions in the base whose unit is no longer wanted."""
    num_dropped_units: int
    kept_rest: pa.Table
    """Rows of the base's rest whose unit is still wanted."""
    num_kept_units: int


def compare(wanted: pa.Array, base: Base, retry_quarantined: bool = False) -> Difference:
    """Units wanted, minus those with rows at the base, minus those it tried in vain (ARCHITECTURE, section 3)."""
    tried = base.tried
    if retry_quarantined:
        tried = tried.filter(pc.not_equal(tried["state"], "quarantined"))
    have = base.units.unique()
    known = pa.concat_arrays([have, flat(tried["unit"]).unique()]) if tried.num_rows else have
    is_known = pc.is_in(wanted, value_set=known)
    gone = pc.invert(pc.is_in(base.units, value_set=wanted))
    return Difference(
        compute=np.flatnonzero(np.asarray(pc.invert(is_known))),
        drop=np.flatnonzero(np.asarray(gone)),
        num_dropped_units=len(base.units.filter(gone).unique()),
        kept_rest=tried.filter(pc.is_in(tried["unit"], value_set=wanted)),
        num_kept_units=int(np.count_nonzero(np.asarray(is_known))),
    )
