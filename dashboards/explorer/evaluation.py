"""Scores over steps with their gates, and the answers behind them with their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dashboards.explorer.root import MAX_PAGE, Root, has_parent, key_literals, key_of, literal
from dashboards.scores import SHOWN
from infra.ledger import snapshot_of
from infra.store import ordering
from infra.types import Snapshot, UserError

MAX_SCORES = 20_000
"""Rows of scores that are sent: a row is one score of one checkpoint."""
FILTERS = ("suite", "task", "training")


def scores(root: Root) -> dict[str, Any]:
    """Every score of every checkpoint; of a root without `plait evaluate` what its own evaluation measured."""
    standing = root.standing()
    made = standing.dones.get("marks")
    rows: list[dict[str, Any]] = []
    total = 0
    if made:
        snapshot = snapshot_of(made)
        total = snapshot.rows
        rows = root.page(snapshot, (*SHOWN, "suite", "num_questions", "judge", "checkpoint"), limit=MAX_SCORES)
    evals = standing.dones.get("evals")
    return {
        "dataset": f"marks@{made['snapshot']['version']}" if made else None,
        "total": total,
        "rows": rows,
        "metrics": evals["metrics"] if evals else {},
        "evals": f"evals@{evals['snapshot']['version']}" if evals else None,
    }


def samples(root: Root, suite: str, sort: str, descending: bool, offset: int, limit: int) -> dict[str, Any]:
    """Rows of `evals`: what the pipeline itself scored."""
    snapshot = root.snapshot("evals")
    if snapshot is None:
        raise UserError(f"there are no evals under {root.bucket.uri}: `plait run --to evals` makes them")
    where = f"suite = {literal(suite)}" if suite else None
    return _sorted_page(root, snapshot, ("suite", "step", "prompt", "output", "judge", "score"), where, sort, descending, offset, limit)  # fmt: skip  # noqa: E501


def _sorted_page(
    root: Root, snapshot: Snapshot, columns: Sequence[str], where: str | None, sort: str, descending: bool,
    offset: int, limit: int,
) -> dict[str, Any]:  # fmt: skip
    """A page of the rows that pass, in the order of one column."""
    if not 0 < limit <= MAX_PAGE or offset < 0:
        raise UserError(f"a page has 1 to {MAX_PAGE} rows and begins at 0 or later")
    known = root.columns(snapshot)
    if sort and sort not in known:
        raise UserError(f"{sort!r} is no column of {snapshot.name}: {', '.join(known)}")
    wanted = ["key", *(c for c in columns if c in known)]
    order = {"order_by": [ordering(sort, descending)]} if sort else {}
    scan = root.open(snapshot).scanner(columns=wanted, filter=where, limit=limit, offset=offset, **order)
    rows = [{**row, "key": row["key"].hex()} for row in scan.to_table().to_pylist()]
    names = [n for n in ("suite", "task") if n in known]
    return {
        "total": root.count(snapshot, where),
        "offset": offset,
        "dataset": f"{snapshot.name}@{snapshot.version}",
        "choices": {n: _choices(root, snapshot, n) for n in names},
        "rows": rows,
    }


def _choices(root: Root, snapshot: Snapshot, name: str) -> list[str]:
    """The different values of a column of few words."""

    def read() -> list[str]:
        column = root.open(snapshot).to_table(columns=[name])[name].dictionary_encode().unify_dictionaries()
        return sorted(v for v in column.chunk(0).dictionary.to_pylist() if v) if column.num_chunks else []

    return root.cache.get(("choices", snapshot, name), read, lambda v: 50 * len(v))


# --- answers ---------------------------------------------------------------------------------------------------


def answers(
    root: Root, chosen: Mapping[str, str], step: int | None, right: str, offset: int, limit: int
) -> dict[str, Any]:
    """Answers of checkpoints with what was judged of them, by suite, task, training, step and verdict."""
    generations, verdicts = _answers_and_verdicts(root)
    if not 0 < limit <= MAX_PAGE or offset < 0:
        raise UserError(f"a page has 1 to {MAX_PAGE} answers and begins at 0 or later")
    clauses = [f"{n} = {literal(chosen[n])}" for n in FILTERS if chosen.get(n)]
    clauses += [f"step = {step}"] if step is not None else []
    if right:
        if right not in ("right", "wrong") or verdicts is None:
            raise UserError(f"{right[:40]!r} is no verdict to filter by: right or wrong, where answers were judged")
        by = " and ".join([*clauses, "score >= 1.0" if right == "right" else "score < 1.0"])
        judged = root.page(verdicts, ["parents"], by, limit, offset)
        total = root.count(verdicts, by)
        keys = [row["parents"][0] for row in judged if row["parents"]]
        rows = root.page(generations, _ANSWER, f"key in ({key_literals(keys)})") if keys else []
    else:
        where = " and ".join(clauses) or None
        rows, total = root.page(generations, _ANSWER, where, limit, offset), root.count(generations, where)
    _judge(root, verdicts, rows)
    steps = sorted({int(s) for s in root.numbers(generations, "step").tolist()})
    choices = {n: _choices(root, generations, n) for n in FILTERS}
    return {"total": total, "offset": offset, "rows": rows, "steps": steps, "choices": choices}


_ANSWER = ("key", "label", "training", "step", "suite", "task", "prompt", "about", "asks", "text", "index")


def _answers_and_verdicts(root: Root) -> tuple[Snapshot, Snapshot | None]:
    generations = root.snapshot("generations")
    if generations is None:
        raise UserError(f"no checkpoint of {root.bucket.uri} has answered yet: `plait evaluate` asks them")
    return generations, root.snapshot("verdicts")


def _judge(root: Root, verdicts: Snapshot | None, rows: Sequence[dict[str, Any]]) -> None:
    """Put the verdicts of these answers beside them, and names of keys in hex digits."""
    keys = [row["key"] for row in rows]
    found: dict[bytes, dict[str, Any]] = {}
    if verdicts is not None and keys:
        for row in root.page(verdicts, ["parents", "judge", "score", "parts"], has_parent(keys), MAX_PAGE):
            for parent in row.pop("parents"):
                found.setdefault(parent, row)
    for row in rows:
        row["verdict"] = found.get(row["key"])
        row["key"] = row["key"].hex()


def answer(root: Root, key: str) -> dict[str, Any]:
    """One answer with its verdict."""
    generations, verdicts = _answers_and_verdicts(root)
    rows = root.page(
        generations, (*_ANSWER, "files_sha256", "question", "evidence"), f"key = X'{key_of(key).hex()}'", 1
    )
    if not rows:
        raise UserError(f"{key} is the key of no answer of generations@{generations.version}")
    _judge(root, verdicts, rows)
    return rows[0]


def finite(value: Any) -> Any:
    """What JSON can say of a number: nan and infinities are null."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
