"""What a materialisation looks like to people: the JSON entry of `run` and `status`, and MLflow's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.ledger import snapshot_of
from pipelines.materialise import Made
from pipelines.plan import Planner, StagePlan

COUNTS = ("rows_in", "rows_out", "empty", "filtered", "quarantined")


def entry(
    plan: StagePlan,
    done: Mapping[str, Any] | None,
    state: str,
    computed: int,
    kept: int,
    told: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One stage of `run --json`: rows describe the snapshot, kept and computed this run."""
    return {
        "name": plan.name,
        "state": state,
        **{name: done[name] if done else None for name in COUNTS},
        "kept": kept,
        "computed": computed,
        "seconds": done["seconds"] if done and state not in ("fresh", "skipped") else 0.0,
        "snapshot": {k: v for k, v in done["snapshot"].items() if k != "rows"} if done else None,
        "mlflow_run_id": told["mlflow_run_id"] if told else None,
        "key": done["key"] if done else plan.key,
        "metrics": done["metrics"] if done else {},
        "reasons": done["reasons"] if done else {},
    }


def report_of(
    planner: Planner, plan: StagePlan, made: Made, cards: Mapping[str, bytes], models: Mapping[str, str]
) -> Any:
    """All that MLflow is told of one materialisation."""
    from infra.tracking import Report

    done = made.done
    job = made.job
    checkpoints = []
    if "manifest" in plan.node.stage.schema.names:
        columns = ["step", "manifest", "manifest_sha256"]
        checkpoints = planner.store.scan(snapshot_of(done), columns).sort_by("step").to_pylist()
    scored = done["inputs"].get("clips") or done["inputs"].get("captions")
    entries = [{**r, "unit": r["unit"].hex()} for r in planner.rest(done).to_pylist()]
    return Report(
        done=done,
        tree=plan.tree,
        notes=plan.notes,
        schema=[[f.name, str(f.type)] for f in plan.node.stage.schema],
        metrics=job.metrics if job else [],
        pictures={**cards, **(job.pictures if job else {})},
        rest=entries,
        checkpoints=checkpoints,
        model_ids=models,
        evaluation_set=scored["snapshot"] if scored else None,
    )
