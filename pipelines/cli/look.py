"""`status`, `why`, `lineage`, `quarantine`, `gc`: the verbs that look at what stands under a root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.types import UserError
from pipelines.cli import show
from pipelines.cli.corpus import source_so_far
from pipelines.cli.going import parted, split

FILES_SHOWN = 12


def _standing(overrides: Sequence[str]) -> tuple[Any, Any]:
    from pipelines.cli.compose import setup
    from pipelines.standing import Standing

    made = setup(overrides)
    return made, Standing(made.root)


def status(overrides: Sequence[str], as_json: bool) -> None:
    """The funnel of the last run."""
    from infra.runs import Runs

    made, standing = _standing(overrides)
    last = standing.last_run
    by_name = {s["name"]: s for s in (last or {}).get("stages", [])}
    stages = [_status_entry(standing, name, by_name.get(name)) for name in standing.order()]
    stages += [s for s in by_name.values() if s["name"] not in standing.dones]
    evals = standing.dones.get("evals")
    runs = Runs(made.root)
    going, killed = runs.going(), runs.killed()
    document: dict[str, Any] = {
        "ok": bool(last and last["ok"]),
        "run_id": last["run_id"] if last else None,
        "root": made.root.uri,
        "running": going,
        "killed": killed,
        "stages": [{k: v for k, v in s.items() if k not in ("key", "metrics", "reasons")} for s in stages],
        "evaluation": evals["metrics"] if evals else {},
        "checkpoint": standing.checkpoint(),
    }
    console = show.out(as_json)
    for run in going:
        said = f"Going on: {run['run_id']} {show.place(run)} since {run['at'][:19]}, plait"
        console.print(f"{said} {' '.join(run['command'])}", markup=False, soft_wrap=True)
        if so_far := show.so_far(runs.shown(run["run_id"])):
            console.print(so_far, "")
    if killed:
        console.print(show.killed(killed), markup=False, soft_wrap=True)
    if not stages:
        console.print(f"Nothing has been made under {made.root.uri} yet: `plait run` makes it.", markup=False)
    else:
        console.print(show.funnel(stages, f"{made.root.uri}, last run {document['run_id']}"))
        reasons = [[n, r, c] for n in standing.order() for r, c in list(standing.dones[n]["reasons"].items())[:4]]
        if reasons:
            console.print()
            console.print(show.table("What gave no row", ("stage", "reason", "units"), reasons, left=2))
        show.requests(console, stages)
        if document["evaluation"]:
            console.print()
            console.print(show.metrics_table(document["evaluation"]))
    if as_json:
        show.emit(document)


def _status_entry(standing: Any, name: str, used: Mapping[str, Any] | None) -> dict[str, Any]:
    from pipelines.report import COUNTS, requests_of

    done = standing.dones[name]
    told = standing.told(done)
    state = used["state"] if used else done["state"]
    return {
        "name": name,
        "state": "done" if state == "skipped" else state,
        **{c: done[c] for c in COUNTS},
        "kept": used["kept"] if used else done["kept"],
        "computed": used["computed"] if used else done["computed"],
        "seconds": done["seconds"],
        "requests": requests_of(done),
        "snapshot": {k: v for k, v in done["snapshot"].items() if k != "rows"},
        "mlflow_run_id": told["mlflow_run_id"] if told else None,
    }


def why(arguments: Sequence[str], row: str | None, as_json: bool) -> None:
    """Why a stage is stale, or what happened to a row."""
    stage, overrides = split(arguments, "stage")
    if row:
        _why_row(row, overrides, as_json)
    elif stage:
        _why_stage(stage, overrides, as_json)
    else:
        raise UserError("plait why needs a stage, as in `plait why captions`, or --row KEY")


def _why_stage(stage: str, overrides: Sequence[str], as_json: bool) -> None:
    from pipelines.ask import Ask
    from pipelines.cli.compose import setup
    from pipelines.plan import Planner

    made = setup(overrides)
    made.graph.node(stage)
    plans = Planner(made.graph, made.root, source_so_far(made), Ask()).plan_all()
    plan = next(p for p in plans if p.name == stage)
    root_cause = _root_cause(made.graph, plans, stage)
    console = show.out(as_json)
    console.print(f"{stage} is {plan.state}.", markup=False)
    for cause in root_cause:
        console.print(f"  {cause['stage']}: {show.cause_text([cause])}", markup=False)
    if as_json:
        show.emit({"name": stage, "state": plan.state, "cause": plan.cause, "root_cause": root_cause})


def _root_cause(graph: Any, plans: Sequence[Any], stage: str) -> list[dict[str, Any]]:
    """The chain from the stage up to the stages where something really moved."""
    upstream = graph.upstream_of(stage)
    return [{"stage": p.name, **c} for p in plans if p.name in upstream and p.state != "fresh" for c in p.cause]


def _why_row(prefix: str, overrides: Sequence[str], as_json: bool) -> None:
    from pipelines.target import Finder

    _, standing = _standing(overrides)
    found = Finder(standing).rows_with_prefix(prefix)
    left = _in_rest(standing, prefix)
    keys = {k for _, k in found} | {e["unit"] for e in left}
    if len(keys) != 1:
        which = (
            "begins several keys, give more digits" if keys else "is the key of no row: keys are hex digits, at least 4"
        )
        raise UserError(f"{prefix!r} {which}")
    document = _row_document(standing, found, left)
    console = show.out(as_json)
    for name, value in document.items():
        if name not in ("rest", "rests"):
            console.print(f"{name:<16}{value}", markup=False, soft_wrap=True)
    for entry in document["rests"]:
        console.print(
            f"in {entry['stage']}: {entry['state']}, {entry['reason'] or 'no rows'}", markup=False, soft_wrap=True
        )
        if entry["error"]:
            console.print(entry["error"], markup=False)
    if as_json:
        show.emit(document)


def _in_rest(standing: Any, prefix: str) -> list[dict[str, Any]]:
    """Entries of the standing materialisations' rests for units whose key begins so."""
    found = []
    for name in standing.order():
        done = standing.dones[name]
        for entry in standing.rest(done).to_pylist():
            if entry["unit"].hex().startswith(prefix.lower()):
                found.append({"stage": name, **entry})
    return found


def _row_document(standing: Any, found: Sequence[Any], left: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from infra.ledger import snapshot_of

    rests = [{k: e[k] for k in ("stage", "state", "reason", "error", "attempt")} for e in left]
    rest = {"reason": rests[0]["reason"], "error": rests[0]["error"]} if rests else None
    if not found:
        entry = left[0]
        done = standing.dones[entry["stage"]]
        return {"key": entry["unit"].hex(), "label": entry["label"], "dataset": None, "stage": entry["stage"], "parents": [], "materialisation": done["key"], "rest": rest, "rests": rests}  # fmt: skip  # noqa: E501
    done, key = found[0]
    where = f"key = X'{key.hex()}'"
    row = standing.store.scan(snapshot_of(done), ["parents", "label"], where).to_pylist()[0]
    return {
        "key": key.hex(),
        "label": row["label"],
        "dataset": done["dataset"],
        "stage": done["dataset"],
        "parents": [p.hex() for p in row["parents"] or []],
        "materialisation": done["key"],
        "rest": rest,
        "rests": rests,
    }


def lineage(target: str, overrides: Sequence[str], down: bool, as_json: bool) -> None:
    """Print where a target came from, or what came of it."""
    from pipelines.lineage import Lineage
    from pipelines.target import Finder

    _, standing = _standing(overrides)
    walk = Lineage(standing)
    found = Finder(standing).find(target)
    picture = walk.down(found) if down else walk.up(found)
    console = show.out(as_json)
    console.print(f"{found.label}: {'what was made of it' if down else 'what it was made of'}", markup=False)
    for kind in ("checkpoint", "evaluation", "snapshot", "row", "file"):
        labels = [n["label"] for n in picture.nodes.values() if n["kind"] == kind]
        if labels:
            more = (
                f" ... and {len(labels) - FILES_SHOWN} more (all of them with --json)"
                if len(labels) > FILES_SHOWN
                else ""
            )
            console.print(f"{kind + 's':<12}{len(labels):>6}  {', '.join(labels[:FILES_SHOWN])}{more}", markup=False)
    if as_json:
        show.emit(picture.to_json())


def quarantine(arguments: Sequence[str], as_json: bool) -> None:
    """Print the units that could not be processed."""
    stage, overrides = split(arguments, "stage")
    _, standing = _standing(overrides)
    names = [stage] if stage else standing.order()
    rows = []
    for name in names:
        for entry in standing.rest(standing.done(name)).to_pylist():
            if entry["state"] == "quarantined":
                fields = {k: entry[k] for k in ("label", "reason", "error", "attempt", "error_class", "trace_digest")}
                rows.append({"stage": name, "unit": entry["unit"].hex(), **fields})
    groups = _by_fault(rows)
    console = show.out(as_json)
    if rows:
        lines = [[g["stage"], g["error_class"] or "", g["trace_digest"] or "", str(g["units"]), g["unit"][:12], g["label"] or "", g["reason"] or ""] for g in groups]  # fmt: skip  # noqa: E501
        names = ("stage", "class", "trace", "units", "one of them", "label", "reason")
        console.print(show.table("Quarantine", names, lines, left=7))
        console.print(
            "plait why --row UNIT shows the error; plait run --retry-quarantined tries them again.", markup=False
        )
    else:
        console.print("Nothing is in quarantine.")
    if as_json:
        show.emit({"rows": rows, "groups": groups})


def _by_fault(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per stage, error class and trace, most units first, with one of its units to look at."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        fault = {k: row[k] for k in ("stage", "error_class", "trace_digest")}
        one = {k: row[k] for k in ("unit", "label", "reason")}
        group = found.setdefault(tuple(fault.values()), {**fault, "units": 0, **one})
        group["units"] += 1
    return sorted(found.values(), key=lambda g: -g["units"])


def diff(a: str, b: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print what differs."""
    from pipelines.diff import between

    _, standing = _standing(overrides)
    stages = between(standing, a, b)
    console = show.out(as_json)
    lines = [[s["name"], *(s["rows"][n] for n in ("both", "only_a", "only_b", "changed"))] for s in stages]
    if lines:
        console.print(show.table(f"{a} and {b}", ("stage", "rows in both", "only a", "only b", "units changed"), lines))
    for stage in stages:
        for leaf in stage["leaves"]:
            console.print(f"{stage['name']}: {show.cause_text([leaf])}", markup=False, soft_wrap=True)
        for name, (was, now) in stage["metrics"].items():
            console.print(f"{stage['name']}: {name} {was} -> {now}", markup=False, soft_wrap=True)
    if not stages:
        console.print("Nothing differs.")
    if as_json:
        show.emit({"a": a, "b": b, "stages": stages})


def gc(overrides: Sequence[str], delete: bool, as_json: bool) -> None:
    """List or delete what nothing names."""
    from pipelines import gc as collector
    from pipelines.cli.compose import setup

    made = setup(overrides)
    garbage = collector.find(made.root)
    console = show.out(as_json)
    by_why: dict[str, list[int]] = {}
    for item in garbage:
        by_why.setdefault(item.why, []).append(item.size_bytes)
    if garbage:
        lines = [[why, len(sizes), f"{sum(sizes) / 1e6:.2f} MB"] for why, sizes in by_why.items()]
        console.print(show.table("Garbage", ("what", "objects", "size"), lines))
    freed = collector.collect(made.root, garbage) if delete else 0
    console.print(f"{'Deleted' if delete else 'Found'} {len(garbage)} objects.", markup=False)
    if as_json:
        rows = [{"path": g.path, "size_bytes": g.size_bytes, "why": g.why} for g in garbage]
        show.emit({"garbage": rows, "deleted": delete, "freed_bytes": freed})


def compact(arguments: Sequence[str], as_json: bool) -> None:
    """Write the standing versions of all datasets, or of those named, as fewer files."""
    from pipelines import compaction

    names, overrides = parted(arguments)
    _, standing = _standing(overrides)
    rows: list[dict[str, Any]] = []
    for name in names or standing.order():
        done = standing.done(name)
        before = compaction.num_fragments(standing, done)
        compaction.rewrite(standing, done)
        after = compaction.num_fragments(standing, standing.ledger.folder(name, done["key"]).done() or done)
        rows.append({"dataset": name, "rows": done["rows_out"], "fragments_before": before, "fragments": after})
    console = show.out(as_json)
    lines = [[r["dataset"], r["rows"], r["fragments_before"], r["fragments"]] for r in rows]
    console.print(show.table("Compaction", ("dataset", "rows", "fragments before", "now"), lines))
    if any(r["fragments"] != r["fragments_before"] for r in rows):
        console.print("The old files go with `plait gc --yes`.", markup=False)
    if as_json:
        show.emit({"datasets": rows})
