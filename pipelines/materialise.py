"""From a plan to a `done`: claim, shards, actors, verify, commit, tag, done. Each arrow survives a kill.

The order of the writes is the protocol (ARCHITECTURE, section 4); what a crash leaves behind is found again by
name: shards by `shard.N.i`, our own commit by its stamp, a published truth by `done.N`.
"""

from __future__ import annotations

import time
from typing import Any

import pyarrow.compute

from infra.faults import crash_point
from infra.ledger import Claim, Folder
from infra.requests import counted
from infra.types import now_utc
from pipelines import rest
from pipelines.job import run_job
from pipelines.plan import Planner, StagePlan
from pipelines.publish import Made, Site, must, put_rest
from pipelines.rows import run_rows
from stages.base import RowStage

pc: Any = pyarrow.compute  # its functions are made at import: no type checker sees them


def materialise(site: Site, plan: StagePlan) -> Made:
    """Bring one planned stage to its `done`, alone or after whoever holds the claim."""
    assert plan.key is not None
    folder = site.planner.ledger.folder(plan.name, plan.key)
    folder.put("key.json", {"dataset": plan.name, "key": plan.key, "tree": plan.tree, "notes": plan.notes})
    last_done = folder.last("done")
    claim = Claim(folder, site.run_id)

    def waiting(holder: dict[str, Any]) -> None:
        """Idle actors would keep the CPUs that whoever we wait for may need."""
        site.run.check()
        site.release_actors()
        site.show(plan.name, 0, 0, f"waiting for {holder['host']}, process {holder['pid']}")

    if not claim.wait(on_wait=waiting, published=last_done):
        return Made(must(folder.done()), 0, adopted=True)
    try:
        crash_point("claimed", plan.name)
        started = time.monotonic()
        stage = plan.node.stage
        with counted() as asked:
            made = run_rows(site, plan, folder) if isinstance(stage, RowStage) else run_job(site, plan, folder)
        done = made.done | {
            "seconds": round(time.monotonic() - started, 3),
            "kept": plan.keep or 0,
            "computed": made.computed,
            "requests": dict(sorted(asked.items())),
            "at": now_utc(),
        }
        if site.wave:
            done["wave"] = site.wave
        return _publish_done(folder, done, made, last_done + 1)
    finally:
        claim.release()


def _publish_done(folder: Folder, done: dict[str, Any], made: Made, number: int) -> Made:
    """Put the `done` that we claimed the right to; whoever took our claim over may have been first."""
    won = folder.put(f"done.{number}", done | {"number": number})
    crash_point("done", done["dataset"])
    if won:
        return Made(must(folder.done()), made.computed)
    return Made(must(folder.done()), made.computed, adopted=True)


def reselect(planner: Planner, plan: StagePlan) -> dict[str, Any]:
    """A fresh stage whose select leaves out other units than its `done` says, though the same ones pass.

    The snapshot stays; the next `done` has the rest as it is now, so that the funnel and `why --row` are true.
    """
    done = must(plan.done)
    if not plan.units or done["gated_out"] == [rest.digest(u.gated_out) for u in plan.units]:
        return done
    folder = planner.ledger.folder(plan.name, done["key"])
    old = planner.rest(done)
    left = rest.join([old.filter(pc.equal(old["by"], "stage")), *(rest.from_select(u.gated_out) for u in plan.units)])
    number = folder.last("done") + 1
    new = {
        "number": number,
        "rest": put_rest(folder, number, left),
        "reasons": rest.by_reason(left),
        "gated_out": [rest.digest(u.gated_out) for u in plan.units],
        "rows_in": sum(len(u.keys) + u.gated_out.num_rows for u in plan.units),
        **rest.counts(left),
        "why": "reselected",
        "at": now_utc(),
    }
    told = folder.get(f"told.{done['number']}")
    if told:  # the materialisation is the same, so MLflow keeps its one run
        folder.put(f"told.{number}", told)
    folder.put(f"done.{number}", done | new)
    return must(folder.done())
