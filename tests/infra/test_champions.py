"""Scores in MLflow's own database: told once, on checkpoint and questions; the gate as a tag, the champion's alias."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient

from infra.champions import ALIAS, GATE, REASON, ScoreBoard, find_model


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowClient(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", registry_uri=f"sqlite:///{folder / 'mlflow.db'}"
    )


def rows(step: int, value: float, outcome: str, champion: bool) -> list[dict[str, Any]]:
    """Two scores of a checkpoint, one of them gated."""
    manifest = f"checkpoints/model/{'a' * 32}.1/step-{step:06d}.json"
    same = {"checkpoint": manifest, "training": "a" * 32, "step": step, "suite": "composition", "asked": "f00d"}
    same |= {"champion": champion, "uri": f"/root/{manifest}"}
    return [
        same | {"score": "composition/overall", "value": value, "low": value - 0.1, "high": value + 0.1}
        | {"outcome": outcome, "reason": f"it is {value}"},
        same | {"score": "pictures_pixels/frechet[pixels-16]", "value": 3.0, "low": None, "high": None}
        | {"outcome": "", "reason": ""},
    ]  # fmt: skip


def test_scores_stand_on_the_checkpoint_once_and_the_champion_has_the_alias(client: MlflowClient) -> None:
    experiment = client.create_experiment("plait")
    board = ScoreBoard(client, experiment, "plait")
    first, bad = rows(10, 0.6, "pass", True), rows(20, 0.2, "fail", False)
    for _ in range(2):  # an evaluation tells all rows each time
        run = client.create_run(experiment).info.run_id
        board.tell(run, [*first, *bad])
    good = find_model(client, experiment, first[0]["checkpoint"])
    overall = [one for one in good.metrics if one.key == "composition/overall"]
    assert [(one.value, one.step, one.dataset_name, one.dataset_digest) for one in overall] == [
        (0.6, 10, "composition", "f00d")
    ]
    assert {one.key for one in good.metrics} == {
        "composition/overall", "composition/overall.low", "composition/overall.high",
        "pictures_pixels/frechet-pixels-16-",
    }  # fmt: skip
    tripped = find_model(client, experiment, bad[0]["checkpoint"])
    assert tripped.tags[GATE] == "fail" and tripped.tags[REASON] == "composition/overall: it is 0.2"
    assert client.get_model_version_by_alias("plait", ALIAS).tags["plait.manifest"] == first[0]["checkpoint"]
    better = rows(30, 0.7, "pass", True)
    board.tell(client.create_run(experiment).info.run_id, [*first, *bad, *better])
    assert client.get_model_version_by_alias("plait", ALIAS).tags["plait.manifest"] == better[0]["checkpoint"]
    board.tell(client.create_run(experiment).info.run_id, [*first, *bad, *better])
    assert len(client.search_model_versions("name = 'plait'")) == 2  # no version twice
