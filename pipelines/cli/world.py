"""What the verbs that work share: the planner, the outside world of a run, MLflow, and the end of Ray."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
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

    command = without_secrets(shlex.join(["plait", *sys.argv[1:]]))
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


def record() -> dict[str, Any]:
    """What the ledger keeps of the command line, and of the code where that is a git checkout."""
    said: dict[str, Any] = {"command": [without_secrets(text) for text in sys.argv[1:]]}
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return said
    try:
        commit, changed = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return said  # git is not installed, or does not trust the folder's owner
    return said | {"code": {"commit": commit, "changed": bool(changed)}}


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def stop_ray() -> None:
    """Leave, or end, the Ray of this process."""
    if "ray" in sys.modules:
        from infra.cluster import disconnect

        disconnect()
