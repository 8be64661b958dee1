"""Scores in MLflow: on the checkpoint and the questions; what the gates said, as tags; the champion's alias."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

ALIAS = "champion"
SCORED, GATE, REASON = "plait.scored", "plait.gate", "plait.gate_reason"
_WORST = ("fail", "inconclusive", "pass")


class ScoreBoard:
    """Tells the scores of checkpoints; what MLflow has already is told no second time."""

    def __init__(self, client: MlflowClient, experiment: str, name: str) -> None:
        self.client, self.experiment = client, experiment
        self.name = name
        """Of the registered model whose alias the champion has."""

    def tell(self, run: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of `scores`, checkpoint by checkpoint in the order in which they were trained."""
        champion: tuple[Any, Mapping[str, Any]] | None = None
        for _, alike in groupby(rows, key=lambda row: row["checkpoint"]):
            own = list(alike)
            model = self.model_of(run, own[0])
            if model.tags.get(SCORED) != _digest(own):
                self._numbers(run, model.model_id, own)
                self.client.set_logged_model_tags(model.model_id, {SCORED: _digest(own), **_gate_tags(own)})
            if own[0]["champion"]:
                champion = model, own[0]
        if champion:
            self._crown(*champion)

    def model_of(self, run: str, row: Mapping[str, Any]) -> Any:
        """The logged model of a checkpoint. One of a training that goes on is not there yet: it is made here, and the
        training finds it by its manifest."""
        found = find_model(self.client, self.experiment, row["checkpoint"])
        if found:
            return found
        tags = {"plait.key": row["training"], "plait.manifest": row["checkpoint"]}
        name = f"model-{row['training'][:8]}-step-{row['step']}"
        made = self.client.create_logged_model(self.experiment, name, run, tags, {}, "model")
        self.client.finalize_logged_model(made.model_id, "READY")
        return self.client.get_logged_model(made.model_id)

    def _numbers(self, run: str, model: str, rows: Sequence[Mapping[str, Any]]) -> None:
        now = int(time.time() * 1000)
        metrics: list[Metric] = []
        for row in rows:
            tied = {"model_id": model, "run_id": run, "dataset_name": row["suite"], "dataset_digest": row["asked"]}
            for name, value in ((row["score"], row["value"]), (f"{row['score']}.low", row["low"]), (f"{row['score']}.high", row["high"])):  # fmt: skip  # noqa: E501
                if value is not None:
                    metrics.append(Metric(_plain(name), value, now, row["step"], **tied))
        self.client.log_batch(run, metrics=metrics)

    def _crown(self, model: Any, row: Mapping[str, Any]) -> None:
        """Give the alias to this checkpoint, as a version of the registered model."""
        versions = self._versions()
        known = next((one for one in versions if one.tags.get("plait.manifest") == row["checkpoint"]), None)
        if known is None:
            tags = {"plait.manifest": row["checkpoint"], "plait.training": row["training"]}
            # with its run named, since MLflow looks for that of a model in whatever store is the default one
            known = self.client.create_model_version(
                self.name, row["uri"], model.source_run_id, tags, model_id=model.model_id
            )
        registered = self.client.get_registered_model(self.name)
        if str(registered.aliases.get(ALIAS)) != str(known.version):
            self.client.set_registered_model_alias(self.name, ALIAS, known.version)

    def _versions(self) -> list[Any]:
        try:
            self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(self.name)
        return list(self.client.search_model_versions(f"name = '{self.name}'"))


def find_model(client: MlflowClient, experiment: str, manifest: str) -> Any:
    """The logged model of a checkpoint by its manifest, or None."""
    named = f"tags.`plait.manifest` = '{manifest}'"
    found = client.search_logged_models([experiment], filter_string=named, max_results=1)
    return found[0] if found else None


def _gate_tags(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The worst that a gate said, and why; nothing where there are no gates."""
    gated = [row for row in rows if row["outcome"]]
    if not gated:
        return {}
    worst = min(gated, key=lambda row: _WORST.index(row["outcome"]))
    return {GATE: worst["outcome"], REASON: f"{worst['score']}: {worst['reason']}"[:4000]}


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    told = [[row["score"], row["value"], row["low"], row["high"], row["outcome"]] for row in rows]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _plain(name: str) -> str:
    """MLflow's names take letters, digits and a few signs: frechet[pixels-16] has none of brackets there."""
    return "".join(c if c.isalnum() or c in "_-. /" else "-" for c in name)
