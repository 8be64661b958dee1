"""A thousand rows: what is bad is in quarantine with all that is known of it, what did not move is not computed."""

import ctypes
import io
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.graph import Graph
from pipelines.rest import EMPTY, SCHEMA, from_bytes, to_bytes
from pipelines.standing import Standing
from stages.base import Edge, RowStage
from stages.ingest import Files, Texts
from tests.conftest import answered

NUM_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Lines(RowStage):
    """One row per line of a text: a thousand rows without a thousand files."""

    writes = "lines"
    inputs = (Edge("texts", columns=("text",)),)
    schema = pa.schema([("line", pa.string())])
    content = ("line",)

    def process(self, rows, tools):
        """Its lines."""
        return [[{"line": line, "label": line} for line in row["text"].splitlines()] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Trials(RowStage):
    """Ten rows in a thousand raise, one hangs, one is a segmentation fault."""

    writes = "trials"
    inputs = (Edge("lines", columns=("line",)),)
    schema = pa.schema([("chars", pa.int64())])

    def process(self, rows, tools):
        """The number of letters."""
        return [[{"chars": self._count(row["line"])}] for row in rows]

    def _count(self, line):
        if line.startswith("raise"):
            raise ValueError(f"{line} at {hex(id(line))} cannot be counted")
        if line.startswith("hang"):
            time.sleep(3600)
        if line.startswith("segv"):
            ctypes.string_at(0)
        return len(line)


def trials(config):
    """files -> texts -> lines -> trials."""
    return Graph("trials", tuple(config.node(s) for s in (Files, Texts, Lines, Trials)))


@pytest.mark.slow
def test_of_a_thousand_rows_the_bad_are_known_by_class_message_and_trace_and_all_others_come_out(make_toy, monkeypatch):
    bad = {f"raise{i}": "ValueError" for i in range(10)} | {"hang0": "DeadlinePassed", "segv0": "WorkerDied"}
    good = [f"good{i}" for i in range(NUM_ROWS - len(bad))]
    spread = good.copy()
    for i, line in enumerate(bad):
        spread.insert(i * 80, line)
    monkeypatch.setattr("tests.toy.graph", trials)
    toy = make_toy()
    for i in range(10):
        toy.write(f"t{i}.txt", "\n".join(spread[i::10]))
    made = toy.run(stages={"trials": {"shard_rows": 64, "batch_rows": 16, "deadline_s": 0.3}})["trials"]
    assert (made["rows_in"], made["rows_out"], made["quarantined"]) == (NUM_ROWS, len(good), len(bad))
    assert sorted(r["label"] for r in toy.rows("trials", ["label"])) == sorted(good)
    standing = Standing(toy.root)
    rest = {e["label"]: e for e in standing.rest(standing.done("trials")).to_pylist()}
    assert {label: e["error_class"] for label, e in rest.items()} == bad
    assert {e["trace_digest"] for label, e in rest.items() if label.startswith("raise")} != {None}
    assert len({e["trace_digest"] for label, e in rest.items() if label.startswith("raise")}) == 1
    assert len({e["trace_digest"] for e in rest.values()}) == 3
    for label, entry in rest.items():
        assert entry["attempt"] >= 2 and len(entry["trace_digest"]) == 16, label
        assert label in entry["reason"] or not label.startswith("raise")
    where = ["pipeline=tests.faults.test_thousand:trials", "root=root"]
    answer = answered("quarantine", "trials", *where, cwd=toy.root.folder.parent)
    assert {(g["stage"], g["error_class"], g["units"]) for g in answer["groups"]} == {
        ("trials", "ValueError", 10), ("trials", "DeadlinePassed", 1), ("trials", "WorkerDied", 1),
    }  # fmt: skip
    assert len(answer["rows"]) == 12 and all(r["error_class"] and r["trace_digest"] for r in answer["rows"])


@pytest.mark.slow
def test_of_a_thousand_rows_ten_new_and_ten_changed_are_twenty_calls_and_a_threshold_or_a_deletion_none(make_toy):
    big = {n: {"shard_rows": 512, "batch_rows": 128} for n in ("files", "texts", "words", "lengths", "upper")}
    toy = make_toy()

    def calls_of(**config):
        toy.forget_calls()
        made = toy.run(stages=big, **config)
        return {n: toy.calls(n) for n in ("words", "lengths", "upper")}, made

    for i in range(NUM_ROWS):
        toy.write(f"t{i}.txt", f"word{i}")
    assert calls_of()[0] == {"words": NUM_ROWS, "lengths": NUM_ROWS, "upper": NUM_ROWS}
    for i in range(10):
        toy.write(f"t{i}.txt", f"changed{i}")
        toy.write(f"new{i}.txt", f"new{i}")
    calls, made = calls_of()
    assert calls == {"words": 20, "lengths": 20, "upper": 20}
    assert all(made[n]["kept"] == NUM_ROWS - 10 and made[n]["rows_out"] == NUM_ROWS + 10 for n in calls)
    calls, made = calls_of(select={"short": "chars < 7"})
    assert calls == {"words": 0, "lengths": 0, "upper": 0}
    assert made["upper"]["rows_out"] == 10 + 90 and made["upper"]["filtered"] == NUM_ROWS - 90
    (toy.source / "t50.txt").unlink()
    calls, made = calls_of(select={"short": "chars < 7"})
    assert calls == {"words": 0, "lengths": 0, "upper": 0}
    for name in calls:
        assert "word50" not in {r["label"] for r in toy.rows(name, ["label"])}, name


def test_a_rest_without_the_newer_columns_is_still_read():
    old = pa.schema([f for f in SCHEMA if f.name not in ("error_class", "trace_digest")])
    entry = {"unit": bytes(16), "label": "a", "state": "quarantined", "reason": "r", "error": "e", "attempt": 2}
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**entry, "by": "stage"}], schema=old), sink)
    (read,) = from_bytes(sink.getvalue()).to_pylist()
    assert read == {**entry, "by": "stage", "error_class": None, "trace_digest": None}
    assert from_bytes(to_bytes(EMPTY)).num_rows == 0
