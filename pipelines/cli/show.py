"""What a person sees: tables within 100 columns, progress with rates and time left, one sentence per error."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from infra.requests import KINDS, RECEIVED, SENT

WIDTH = 100

err = Console(
    # the stream itself: what is put in the place of sys.stderr (by a progress bar, by `capture`) must not hear us
    file=sys.stderr,
    width=None if sys.stderr.isatty() else WIDTH,
    soft_wrap=not sys.stderr.isatty(),
    highlight=False,
)


_stdout: TextIO = sys.stdout
_quiet = False


def be_quiet() -> None:
    """From now on only errors are said, and what is asked for."""
    global _quiet  # noqa: PLW0603 - as the process has one standard error
    _quiet = True


def is_quiet() -> bool:
    """Whether only errors are said."""
    return _quiet


def say(sentence: str) -> None:
    """Something by the way, on standard error."""
    if not _quiet:
        err.print(sentence, markup=False, soft_wrap=True)


def keep_stdout() -> None:
    """Let what other processes write to our standard output (Ray does) go to standard error; keep ours for answers."""
    global _stdout  # noqa: PLW0603 - the process has one standard output
    if _stdout is sys.stdout:
        sys.stdout.flush()
        _stdout = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)


def out(as_json: bool) -> Console:
    """Where tables go: standard output is kept for the JSON object where that is asked for."""
    return err if as_json else Console(file=_stdout, width=None if _stdout.isatty() else WIDTH, highlight=False)


def emit(document: Mapping[str, Any]) -> None:
    """The JSON object, as the last line of standard output."""
    _stdout.write(json.dumps(document) + "\n")
    _stdout.flush()


def place(run: Mapping[str, Any]) -> str:
    """Where a run works: host, process, and the Ray job that it is."""
    job = f", as Ray job {run['job']}" if run["job"] else ""
    return f"on {run['host']} (process {run['pid']}){job}"


def killed(run: Mapping[str, Any]) -> str:
    """What became of a run that left no record, and what to do next."""
    again = shlex.join(["plait", *run["command"]])
    return f"Killed: {run['run_id']} {place(run)}: it has left no record and is no more; `{again}` goes on with what it finished"  # fmt: skip  # noqa: E501


def emit_error(sentence: str, as_json: bool) -> None:
    """One sentence on standard error; the JSON object says it as well."""
    err.print(f"plait: {sentence}", style="bold red", markup=False)
    if as_json:
        emit({"ok": False, "error": sentence})


def _rest(entry: Mapping[str, Any]) -> str:
    """The units of a stage that gave no row."""
    return ", ".join(f"{entry[k]} {k}" for k in ("empty", "filtered", "quarantined") if entry[k])


class ConsoleProgress:
    """Progress of a run on standard error: bars on a terminal, one line per finished stage elsewhere."""

    def __init__(self) -> None:
        self.live = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=err,
            transient=True,
            disable=_quiet or not sys.stderr.isatty(),
        )
        self.tasks: dict[str, TaskID] = {}
        self.live.start()

    def stage(self, name: str, done: int, total: int, what: str) -> None:
        """Move a stage's bar."""
        if name not in self.tasks:
            self.tasks[name] = self.live.add_task(name, total=None, rate="", what="")
        task = self.live.tasks[self.live.task_ids.index(self.tasks[name])]
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        self.live.update(self.tasks[name], completed=done, total=total or None, rate=rate, what=what)

    def finished(self, entry: Mapping[str, Any]) -> None:
        """Replace a stage's bar by its line."""
        if entry["name"] in self.tasks:
            self.live.remove_task(self.tasks.pop(entry["name"]))
        if entry["state"] not in ("fresh", "skipped") and not _quiet:
            line = f"{entry['name']:<14} {entry['state']:<6}{_n(entry['rows_out']):>8} rows  {entry['seconds']:7.1f} s"
            rest = _rest(entry)
            self.live.console.print(line + (f"   {rest}" if rest else ""), markup=False)

    def note(self, sentence: str) -> None:
        """A sentence for the person."""
        if not _quiet:
            self.live.console.print(f"note: {sentence}", style="yellow", markup=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.live.stop()


def _n(value: Any) -> str:
    return "?" if value is None else f"{value:,}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> Table:
    """A plain table; the first `left` columns are text, the others numbers."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", overflow="fold" if i < left else "ellipsis")
    for row in rows:
        made.add_row(*(v if isinstance(v, str) else _n(v) for v in row))
    return made


def so_far(shown: Mapping[str, Any]) -> Table | None:
    """What a run that goes on shows on its own screen (`pipelines/shown.py`); None where it has shown nothing yet."""
    ended = [said["finished"] for said in shown.get("said", ()) if "finished" in said]
    rows = [
        [e["name"], e["state"], _n(e["rows_out"]), _rest(e)] for e in ended if e["state"] not in ("fresh", "skipped")
    ]
    for name, (done, total, what) in shown.get("stages", {}).items():
        rows.append([name, "at work", f"{_n(done)} of {_n(total or None)}", what])
    return table("So far", ("stage", "state", "rows, or units done", ""), rows, left=4) if rows else None


def funnel(stages: Sequence[Mapping[str, Any]], title: str = "Funnel") -> Table:
    """Units in = units with rows + empty + filtered + quarantined, stage by stage."""
    columns = ("stage", "state", "in", "rows out", "empty", "filtered", "quarant.", "kept", "computed", "seconds")
    names = ("rows_in", "rows_out", "empty", "filtered", "quarantined", "kept", "computed")
    rows = [[s["name"], s["state"], *(s[n] for n in names), f"{s['seconds'] or 0:.1f}"] for s in stages]
    return table(title, columns, rows, left=2)


def requests(console: Console, stages: Sequence[Mapping[str, Any]]) -> None:
    """What each stage asked of the store, where the root lies in one; the last line is what a bill would count."""
    asked = {s["name"]: Counter(s.get("requests") or {}) for s in stages if s.get("requests")}
    if not asked:
        return
    lines = [[name, *_asked(counts)] for name, counts in asked.items()]
    if len(asked) > 1:
        lines.append(["all", *_asked(sum(asked.values(), Counter[str]()))])
    console.print()
    console.print(table("Requests to the store", ("stage", *KINDS, "MB sent", "MB received"), lines))


def _asked(counts: Mapping[str, int]) -> list[Any]:
    sizes = [f"{counts.get(name, 0) / 1e6:.1f}" for name in (SENT, RECEIVED)]
    return [*(counts.get(kind, 0) for kind in KINDS), *sizes]


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """The evaluation, one line a metric."""
    return table("Evaluation", ("metric", "value"), [[k, f"{v:.4g}"] for k, v in metrics.items()])


def cause_text(cause: Sequence[Mapping[str, Any]]) -> str:
    """Causes in words, digests shortened."""
    parts = [
        f"{c['leaf']}: {_short(c['was'])} -> {_short(c['now'])}"
        if c["was"] != c["now"]
        else f"{c['leaf']}: not made yet"
        for c in cause
    ]
    parts = ["never made" if p.startswith("never made") else p for p in parts]
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def _short(value: Any) -> str:
    text = "not made yet" if value is None else str(value)
    is_digest = len(text) == 32 and all(c in "0123456789abcdef" for c in text)
    return text[:8] if is_digest else text
