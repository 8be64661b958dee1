"""What a materialisation looks like to people: the JSON entry of `run` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.plan import StagePlan

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
        "requests": requests_of(done) if state not in ("fresh", "skipped") else {},
        "snapshot": {k: v for k, v in done["snapshot"].items() if k != "rows"} if done else None,
        "mlflow_run_id": told["mlflow_run_id"] if told else None,
        "key": done["key"] if done else plan.key,
        "metrics": done["metrics"] if done else {},
        "reasons": done["reasons"] if done else {},
    }


def requests_of(done: Mapping[str, Any] | None) -> dict[str, int]:
    """What the materialisation asked of its store: requests by kind, bytes; nothing of a folder, or of before."""
    return dict((done or {}).get("requests", {}))
