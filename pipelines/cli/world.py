"""What the verbs that work share: the planner, the outside world of a run, MLflow, and the end of Ray."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

from infra.types import without_secrets
from pipelines.ask import Ask


def planner_of(made: Any, asked: Ask, source: Any) -> Any:
    """A planner over the root, its clauses looked at first."""
    from infra.store import check_clauses
    from pipelines.plan import Planner

    for node in made.graph:
        if node.select:
            check_clauses(made.graph.node(node.select.dataset).stage.schema, node.select.clauses)
            break
    return Planner(made.graph, made.root, source, asked)


def services_of(made: Any, source: Any, progress: Any) -> Any:
    """The outside world of a run."""
    from pipelines.run import Services

    config = made.config

    def ray() -> Any:
        from infra.cluster import connect

        return connect(config.cluster.address, config.cluster.workers)

    command = without_secrets(shlex.join(["plait", *typed()]))
    again = f"run `{command}` again"
    can_grow = bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    return Services(made.root, source, ray, lambda: tracker_of(made), cards, progress, again, tales, can_grow)


def tracker_of(made: Any) -> Any:
    """MLflow, or None where it is off."""
    if not made.config.tracking.enabled:
        return None
    from infra.tracking import Tracker

    made.home.mkdir(parents=True, exist_ok=True)
    return Tracker(*tracking_places(made), made.config.tracking.experiment)


def tracking_places(made: Any) -> tuple[str, str | None]:
    """Tracking URI and, for the database beside the data, where its artifacts go."""
    uri = made.config.tracking.uri
    return (uri, None) if uri else (f"sqlite:///{made.home / 'mlflow.db'}", str(made.home / "mlartifacts"))


def cards(store: Any, snapshot: Any, done: Any) -> Any:
    """Pictures of a materialisation, for MLflow."""
    from dashboards.cards import cards_of

    return cards_of(store, snapshot, done)


def tales(record: Any, read: Any) -> Any:
    """What MLflow's parent run shows of a pipeline run."""
    from dashboards.story import story_of

    return story_of(record, read)


def typed() -> list[str]:
    """The command line; of a run that was submitted, the one that was typed where it was submitted."""
    from infra.jobs import submitted

    job = submitted()
    return list(job.command) if job and job.command else sys.argv[1:]


def record() -> dict[str, Any]:
    """What the ledger keeps of the command line, of the code, and of the Ray job whose command this is."""
    from infra.jobs import submitted
    from pipelines.cli import checkout

    job = submitted()
    ours = {"job": job.job, "run_id": job.run_id} if job else {"job": None}
    code = checkout.version()
    return {"command": [without_secrets(text) for text in typed()], **ours, **({"code": code} if code else {})}


def stop_ray() -> None:
    """Leave, or end, the Ray of this process."""
    if "ray" in sys.modules:
        from infra.cluster import disconnect

        disconnect()
