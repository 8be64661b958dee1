"""MLflow: a projection of the ledger for people and for its own API.

One parent run per pipeline run, one child per materialised stage. Datasets in and out carry a source whose JSON
names uri, version and digest (context "input" or "output": MLflow has no output datasets of its own), checkpoints
are logged models, and scores are tied to the checkpoint and to the set that they were measured on.
MLflow being away never stops a run: what could not be told stays untold in the ledger.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each stage, between ours

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException

from infra.champions import ScoreBoard, find_model
from infra.mlflow_source import LanceSource
from infra.types import without_secrets

for _noisy in ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)

MAX_PARAM_CHARS = 6000
BATCH = 900
LIVE = "plait.live"
"""Tag of the run of a materialisation that is not done."""


@dataclass(frozen=True)
class Report:
    """What MLflow is told of one materialisation."""

    done: Mapping[str, Any]
    tree: Mapping[str, Any]
    notes: Mapping[str, Any]
    schema: Sequence[Sequence[str]]
    metrics: Sequence[tuple[int, Mapping[str, float], int]]
    """Of each step of a job, and when they were told (milliseconds since 1970)."""
    pictures: Mapping[str, bytes]
    rest: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Mapping[str, Any]]
    """Rows of a dataset of checkpoints: step, manifest, manifest_sha256."""
    model_ids: Mapping[str, str]
    """For stages that read a checkpoint: dataset to MLflow's id of its last logged model."""
    evaluation_set: Mapping[str, Any] | None
    """Snapshot that the scores were measured on."""
    scores: Sequence[Mapping[str, Any]] = ()
    """Rows of `scores`, in the order of checkpoints (infra/champions.py)."""


class Tracker:
    """Tells MLflow. Every method gives None when MLflow is away, and `trouble` says why."""

    def __init__(self, uri: str, artifacts: str | None, experiment: str) -> None:
        self.uri = uri
        self.name = experiment
        self.trouble: str | None = None
        self.parent: str | None = None
        self._run_id: str | None = None
        self.opened: dict[str, str] = {}
        """Parent runs by the id of the pipeline run."""
        self._shown_in: str | None = None
        self._shown: Counter[tuple[str, int, int]] = Counter()
        with self._guard():
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            location = None if artifacts is None else f"{artifacts}/{experiment}"
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment, location)

    @contextmanager
    def _guard(self) -> Generator[None]:
        try:
            yield
        except (MlflowException, ConnectionError, TimeoutError, OSError) as error:
            said = f"{type(error).__name__}: {str(error)[:160]}"
            self.trouble = without_secrets(f"MLflow at {self.uri} could not be told ({said})")

    def start(self, run_id: str, pipeline: str) -> None:
        """Open the parent run of a pipeline run, or find it again."""
        if self.trouble or run_id == self._run_id:
            return
        with self._guard():
            query = f"tags.`plait.run_id` = '{run_id}' and tags.`plait.pipeline` = '{pipeline}'"
            found = self.client.search_runs([self.experiment], filter_string=query, max_results=1)
            tags = {"plait.run_id": run_id, "plait.pipeline": pipeline}
            name = f"{pipeline} {run_id}"
            run = found[0] if found else self.client.create_run(self.experiment, run_name=name, tags=tags)
            self.parent, self._run_id = run.info.run_id, run_id
            self.opened[run_id] = run.info.run_id

    def end(self, run_id: str, status: str, story: Any) -> None:
        """Close the parent run of a pipeline run, with what it shows of it all (dashboards/story.py), if anything."""
        if self.trouble:
            return
        with self._guard():
            parent = self.opened[run_id]
            if story is not None:
                for name, value in {**story.tags, "mlflow.note.content": story.description}.items():
                    self.client.set_tag(parent, name, value)
                now = int(time.time() * 1000)
                self.client.log_batch(parent, metrics=[Metric(k, v, now, 0) for k, v in story.metrics.items()])
                self._pictures(parent, story.pictures, None)
            self.client.set_terminated(parent, story.status if story else status)

    def stage(self, report: Report) -> dict[str, Any] | None:
        """Tell of one materialisation: {"mlflow_run_id", "models"}; the same one is told once."""
        told: dict[str, Any] | None = None
        if not self.trouble:
            with self._guard():
                told = self._told(report) or self._tell(report)
        return told

    def taint(self, manifests: Sequence[str], why: str) -> None:
        """Tag the logged models of these checkpoints."""
        if not self.trouble:
            with self._guard():
                for model in self.client.search_logged_models([self.experiment], max_results=1000):
                    if model.tags.get("plait.manifest") in manifests:
                        self.client.set_logged_model_tags(model.model_id, {"plait.tainted": why})

    def show(self, of: Mapping[str, Any], points: Sequence[tuple[int, Mapping[str, float], int]]) -> None:
        """What a materialisation (dataset, key, number, run_id) that goes on has told so far; what is new is added to
        its run, which is opened by the first, or found as an earlier driver left it."""
        if not self.trouble:
            with self._guard():
                if self._shown_in is None:
                    self._shown_in = self._shown_before(of) or self._open(of, {LIVE: "yes"})
                    self._shown = self._points_in(self._shown_in)
                new = [m for m in _of_steps(points) if _place(m) not in self._shown]
                for start in range(0, len(new), BATCH):
                    self.client.log_batch(self._shown_in, metrics=new[start : start + BATCH])
                self._shown.update(map(_place, new))

    def stop_showing(self, status: str) -> None:
        """The materialisation has ended without a result: FAILED or KILLED. Whoever goes on with it finds its run."""
        if self._shown_in is not None and not self.trouble:
            with self._guard():
                self.client.set_terminated(self._shown_in, status)

    def _shown_before(self, of: Mapping[str, Any]) -> str | None:
        """The run in which a materialisation was shown, as one that goes on, under the present parent."""
        query = f"tags.`plait.materialisation` = '{_name(of)}' and tags.`{LIVE}` = 'yes'"
        found = self.client.search_runs([self.experiment], filter_string=query, max_results=1)
        if not found:
            return None
        run = found[0].info.run_id
        for tag, value in (("mlflow.parentRunId", self.parent), ("plait.run_id", of["run_id"])):
            if value:
                self.client.set_tag(run, tag, value)
        self.client.update_run(run, status="RUNNING")
        return run

    def _points_in(self, run: str) -> Counter[tuple[str, int, int]]:
        """How often a run has each metric's value of a step and time."""
        names = self.client.get_run(run).data.metrics
        return Counter(_place(m) for name in names for m in self.client.get_metric_history(run, name))

    def _taken_over(self, report: Report) -> tuple[str | None, Counter[tuple[str, int, int]]]:
        """The run in which this materialisation was shown, and what it has; it is deleted where that is not part of
        what is to be told, or is there twice, since a point of MLflow cannot be taken back."""
        run = self._shown_before(report.done)
        if run is None:
            return None, Counter()
        there = self._points_in(run)
        if there <= Counter(_place(m) for m in _of_steps(report.metrics)):
            self.client.delete_tag(run, LIVE)  # whoever dies from here on leaves no run that another would go on with
            return run, there
        self.client.delete_run(run)
        return None, Counter()

    def _open(self, of: Mapping[str, Any], more: Mapping[str, str]) -> str:
        parent = {"mlflow.parentRunId": self.parent} if self.parent else {}
        tags = parent | {
            "plait.stage": of["dataset"],
            "plait.key": of["key"],
            "plait.materialisation": _name(of),
            "plait.run_id": of["run_id"],
        }
        return self.client.create_run(self.experiment, run_name=of["dataset"], tags=tags | dict(more)).info.run_id

    def _told(self, report: Report) -> dict[str, Any] | None:
        query = f"tags.`plait.materialisation` = '{_name(report.done)}' and attributes.status = 'FINISHED'"
        runs = self.client.search_runs([self.experiment], filter_string=query, max_results=1)
        return {"mlflow_run_id": runs[0].info.run_id, "models": {}} if runs else None

    def _tell(self, report: Report) -> dict[str, Any]:
        done = report.done
        taken, there = self._taken_over(report)
        run = taken or self._open(done, {})
        description = f"{done['dataset']}: {done['rows_in']} units in, {done['rows_out']} rows out"
        self.client.set_tag(run, "mlflow.note.content", description)
        self.client.log_inputs(run, datasets=_datasets(report))
        self._numbers(run, report, there)
        self._artifacts(run, report)
        models = self._models(run, report)
        ScoreBoard(self.client, self.experiment, self.name).tell(run, report.scores)
        if report.model_ids:
            self.client.log_inputs(run, models=[LoggedModelInput(i) for i in report.model_ids.values()])
        self.client.set_terminated(run, "FINISHED")
        return {"mlflow_run_id": run, "models": models}

    def _numbers(self, run: str, report: Report, there: Counter[tuple[str, int, int]]) -> None:
        done, now = report.done, int(time.time() * 1000)
        settings = report.tree["recipe"]["settings"]
        params = [Param(k, json.dumps(v)[:MAX_PARAM_CHARS] if not isinstance(v, str) else v[:MAX_PARAM_CHARS]) for k, v in settings.items()]  # fmt: skip  # noqa: E501
        params += [Param(f"select.{k}", v[:MAX_PARAM_CHARS]) for k, v in report.notes.get("select", {}).items()]
        names = ("rows_in", "rows_out", "empty", "filtered", "quarantined", "kept", "computed", "seconds")
        flat = {f"rows/{n}" if n.startswith("rows") else n: float(done[n]) for n in names}
        if done["computed"] and done["seconds"]:
            flat["units_per_second"] = done["computed"] / done["seconds"]
        flat |= {f"rest/{_plain(reason)}": float(n) for reason, n in list(done["reasons"].items())[:100]}
        flat |= {f"rest/{s}": float(done[s]) for s in ("empty", "filtered", "quarantined")}
        metrics = [Metric(k, v, now, 0) for k, v in flat.items()]
        metrics += [m for m in _of_steps(report.metrics) if _place(m) not in there]
        tied = self._tie(run, report, now)
        for start in range(0, max(len(metrics), 1), BATCH):
            self.client.log_batch(
                run, metrics=metrics[start : start + BATCH], params=params[:100] if start == 0 else []
            )
        if tied:
            self.client.log_batch(run, metrics=tied)

    def _tie(self, run: str, report: Report, now: int) -> list[Metric]:
        """Final metrics; where they score a checkpoint, tied to it and to the evaluation set."""
        tied: list[Metric] = []
        for name, value in report.done["metrics"].items():
            model = report.model_ids.get(name.partition("/")[0]) or report.model_ids.get("model")
            extra = {"model_id": model, "run_id": run} if model else {}
            if model and report.evaluation_set:
                on = report.evaluation_set
                extra |= {"dataset_name": on["name"], "dataset_digest": on["digest"]}
            tied.append(Metric(name, value, now, 0, **extra))
        return tied

    def _artifacts(self, run: str, report: Report) -> None:
        self.client.log_dict(run, {"tree": report.tree, "notes": report.notes}, "key.json")
        self.client.log_dict(run, dict(report.done), "done.json")
        lines = ["unit,label,state,reason,error,attempt"]
        lines += [",".join(json.dumps(str(r[c] if r[c] is not None else "")) for c in lines[0].split(",")) for r in report.rest]  # fmt: skip  # noqa: E501
        self.client.log_text(run, "\n".join(lines), "rest.csv")
        self._pictures(run, report.pictures, "pictures")

    def _pictures(self, run: str, pictures: Mapping[str, bytes], below: str | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in pictures.items():
                path = Path(folder, name if "." in name else f"{name}.png")
                path.write_bytes(data)
                self.client.log_artifact(run, str(path), below)

    def _models(self, run: str, report: Report) -> dict[str, str]:
        """Each checkpoint as a logged model, linked to the packs (or clips) that it was trained on."""
        found: dict[str, str] = {}
        for row in report.checkpoints:
            params = {f"{name}.{k}": str(i["snapshot"][k]) for name, i in report.done["inputs"].items() for k in ("uri", "version", "digest")}  # fmt: skip  # noqa: E501
            tags = {"plait.key": report.done["key"], "plait.manifest": row["manifest"], "plait.manifest_sha256": row["manifest_sha256"]}  # fmt: skip  # noqa: E501
            name = f"{report.done['dataset']}-{report.done['key'][:8]}-step-{row['step']}"
            model = find_model(self.client, self.experiment, row["manifest"])
            if model is None:  # else it was scored before its training was told
                kind = report.done["dataset"]
                model = self.client.create_logged_model(self.experiment, name, run, tags, params, kind)
                self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_outputs(run, [LoggedModelOutput(model.model_id, row["step"])])
            found[str(row["step"])] = model.model_id
        return found


def _of_steps(points: Sequence[tuple[int, Mapping[str, float], int]]) -> list[Metric]:
    return [Metric(name, value, at_ms, step) for step, row, at_ms in points for name, value in row.items()]


def _place(metric: Metric) -> tuple[str, int, int]:
    """Where a value stands; a point of one place is one point."""
    return metric.key, metric.step, metric.timestamp


def _name(done: Mapping[str, Any]) -> str:
    return f"{done['dataset']}/{done['key']}/{done['number']}"


def _plain(text: str) -> str:
    """MLflow's metric names take letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "_-. /" else "-" for c in text)[:200]


def _datasets(report: Report) -> list[DatasetInput]:
    pairs = [(i["snapshot"], "input") for i in report.done["inputs"].values()]
    pairs.append((report.done["snapshot"], "output"))
    found = []
    for snapshot, context in pairs:
        source = json.dumps(LanceSource(snapshot["uri"], snapshot["version"], snapshot["digest"]).to_dict())
        columns = [{"name": n, "type": t} for n, t in report.schema] if context == "output" else []
        schema = json.dumps(
            {"mlflow_colspec": [{"type": "string", "name": c["name"], "required": True} for c in columns]}
        )
        profile = json.dumps({"num_rows": snapshot["rows"]})
        dataset = Dataset(snapshot["name"], snapshot["digest"], "plait_lance", source, schema if columns else None, profile)  # fmt: skip  # noqa: E501
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found
