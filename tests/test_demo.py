"""The main pipeline on a small sample corpus, from raw files to an evaluated checkpoint: on a folder and on S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPO, answered, plait

pytestmark = pytest.mark.slow

SMALL = [
    "sample.num_videos=3", "sample.num_stills=80", "sample.num_texts=6", "tokenizer.phases.all=12", "tokenizer.batch=8",
    "tokenizer.checkpoint_every=6", "model.steps=2", "model.checkpoint_every=1", "evals.num_samples=2",
]  # fmt: skip
STAGES = [
    "files",
    "videos",
    "images",
    "texts",
    "clips",
    "scores",
    "captions",
    "tokenizer",
    "indices",
    "text_tokenizer",
    "packs",
    "model",
    "evals",
]


ON_A_FOLDER = pytest.mark.parametrize("made", ["folder"], indirect=True)
"""For what is the same wherever the root lies."""


def answer(done: subprocess.CompletedProcess) -> dict:
    """The JSON object on the last line of standard output."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module", params=["folder", "s3"])
def made(request, tmp_path_factory):
    """The finished run: working directory, where-arguments, the answer of `run --json`. On S3 nobody disturbs it; on a
    folder one of its actors is killed."""
    folder = tmp_path_factory.mktemp(request.param)
    where = ["root=data"]
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        where += ["storage=s3", "storage.root=s3://plait/deep/root", f"storage.endpoint={endpoint}"]
        # what the place of the root changes is who writes a checkpoint, not how many train
        near = request.getfixturevalue("near")
        one = "cluster.stages.tokenizer.workers=1"
        done = plait("run", *where, *SMALL, one, "--json", cwd=folder, env=near, timeout=400)
    else:
        done = run_with_a_killed_actor("run", *where, *SMALL, "--json", cwd=folder)
    return folder, where, answer(done), done


def run_with_a_killed_actor(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """SIGKILL to the first actor that shows up, a second later."""
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=cwd, env=environment, **pipes)
    victims, end = [], time.monotonic() + 240
    while not victims and process.poll() is None and time.monotonic() < end:
        time.sleep(0.3)
        with suppress(psutil.Error):  # whoever ends while we look
            children = psutil.Process(process.pid).children(recursive=True)
            victims = [child for child in children if child.cmdline()[:1] and "ray::Host" in child.cmdline()[0]]
    if not victims:
        process.kill()
        pytest.fail(f"no actor was seen: {process.communicate()[1]}")
    time.sleep(1.0)
    victims[0].kill()
    output, said = process.communicate(timeout=400)
    return subprocess.CompletedProcess(command, process.returncode, output, said)


def test_every_stage_ends_and_every_unit_is_accounted_for(made):
    _, _, run, _ = made
    assert run["ok"] and [s["name"] for s in run["stages"]] == STAGES
    assert all(s["state"] == "done" for s in run["stages"])
    for stage in run["stages"]:
        if stage["name"] in ("files", "videos", "images", "texts", "scores", "indices", "captions"):
            assert stage["rows_in"] == sum(stage[n] for n in ("rows_out", "empty", "filtered", "quarantined"))
    assert run["checkpoint"].endswith("step-000002.json")
    losses = {f"heldout/{kind}_{what}" for kind in ("text", "vision") for what in ("loss", "unigram")}
    assert {"tokenizer/psnr", "tokenizer/ssim"} | losses <= set(run["evaluation"])


def test_a_killed_actor_costs_time_and_no_row(made):
    """The spoilt videos alone are at fault, in the run on a folder, whose actor was killed, as in that on S3."""
    _, _, run, _ = made
    assert {s["name"]: s["quarantined"] for s in run["stages"] if s["quarantined"]} == {"videos": 2}


def test_the_same_command_again_computes_nothing(made):
    folder, where, _, _ = made
    again = answer(plait("run", *where, *SMALL, "--json", cwd=folder))
    assert {s["state"] for s in again["stages"]} == {"fresh"}
    assert {s["computed"] for s in again["stages"]} == {0}
    plan = answered("plan", *where, *SMALL, cwd=folder)
    assert {(s["state"], s["compute"], s["drop"]) for s in plan["stages"]} == {("fresh", 0, 0)}


def test_a_checkpoint_is_traced_to_raw_files_and_a_raw_file_to_checkpoints(made):
    folder, where, run, _ = made
    up = answered("lineage", run["checkpoint"], *where, cwd=folder)
    files = {n["label"] for n in up["nodes"] if n["kind"] == "file"}
    assert any(f.endswith(".mp4") for f in files) and any(f.endswith(".png") for f in files)
    ids = {n["id"] for n in up["nodes"]}
    assert all(a in ids and b in ids for a, b in up["edges"])
    reached = {run["checkpoint"].split("/")[-1]} and {n["id"] for n in up["nodes"] if n["kind"] == "checkpoint"}
    for _ in range(30):
        reached |= {a for a, b in up["edges"] if b in reached}
    assert {f"file:{f}" for f in files} <= reached  # every named file has a path to the checkpoint
    still = next(f for f in sorted(files) if f.endswith(".png"))
    down = answered("lineage", still, *where, "--down", cwd=folder)
    kinds = {n["kind"] for n in down["nodes"]}
    labels = " ".join(n["label"] for n in down["nodes"])
    assert "checkpoint" in kinds and "clips: " in labels and "packs: " in labels


@ON_A_FOLDER
def test_the_checkpoint_is_exported_with_its_text_tokenizer(made, tmp_path):
    folder, where, run, _ = made
    note = answered("export", run["checkpoint"], str(tmp_path / "out"), *where, cwd=folder)
    assert run["checkpoint"].endswith(note["manifest"]) and note["step"] == 2 and note["layout"] == "qwen3"
    files = {"config.json", "model.safetensors", "plait.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files


@ON_A_FOLDER
def test_mlflow_alone_shows_the_chain_from_videos_to_the_model(made):
    from mlflow import MlflowClient

    folder, _, run, _ = made
    client = MlflowClient(f"sqlite:///{folder / 'data' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("plait")
    produced, consumed = {}, {}
    for told in client.search_runs([experiment.experiment_id], max_results=200):
        for given in told.inputs.dataset_inputs:
            source = json.loads(given.dataset.source)
            assert set(source) == {"uri", "version", "digest"} and source["digest"] == given.dataset.digest
            side = {t.key: t.value for t in given.tags}["mlflow.data.context"]
            name = told.data.tags.get("plait.stage")
            (produced if side == "output" else consumed).setdefault(name, set()).add(
                (given.dataset.name, given.dataset.digest)
            )
    makers = {pair: name for name, pairs in produced.items() for pair in pairs}
    chain, front = set(), {"model"}
    while front:
        chain |= front
        front = {makers[pair] for name in front for pair in consumed.get(name, ()) if pair in makers} - chain
    assert {"model", "packs", "captions", "indices", "tokenizer", "clips", "videos", "images", "files"} <= chain
    models = client.search_logged_models([experiment.experiment_id], filter_string="metrics.`heldout/text_loss` < 1000")
    assert [m.tags["plait.manifest"].split("/")[-1] for m in models] == ["step-000002.json"]
    packs = next(s for s in run["stages"] if s["name"] == "packs")["snapshot"]
    assert models[0].params["packs.digest"] == packs["digest"]


@ON_A_FOLDER
def test_status_why_and_quarantine_answer_from_the_ledger(made):
    folder, where, run, _ = made
    status = answered("status", *where, cwd=folder)
    for was, now in zip(run["stages"], status["stages"], strict=True):
        assert {k: was[k] for k in ("name", "rows_in", "rows_out", "snapshot", "mlflow_run_id")} == {
            k: now[k] for k in ("name", "rows_in", "rows_out", "snapshot", "mlflow_run_id")
        }
    rows = answered("quarantine", *where, cwd=folder)["rows"]
    assert {r["stage"] for r in rows} == {"videos"} and len(rows) == 2
    fields = {"stage", "unit", "label", "reason", "error", "attempt", "error_class", "trace_digest"}
    assert all(set(r) == fields and len(r["trace_digest"]) == 16 for r in rows)
    why = answered("why", "--row", rows[0]["unit"], *where, cwd=folder)
    assert why["rest"]["reason"] == rows[0]["reason"]
    stale = answered("why", "clips", "clips.threshold=99", *where, *SMALL, cwd=folder)
    assert stale["state"] == "full" and stale["cause"] == [{"leaf": "settings.threshold", "was": 27.0, "now": 99.0}]


def test_no_secret_is_in_any_file_log_or_metadata(made):
    folder, where, _, done = made
    assert "secret-7f3a" not in done.stdout + done.stderr
    for path in Path(folder).rglob("*"):
        if path.is_file():
            assert b"plait-test-secret-7f3a" not in path.read_bytes(), path
    if "storage=s3" in where:
        from infra.s3_bucket import S3Bucket

        endpoint = where[-1].partition("=")[2]
        store = S3Bucket("s3://plait", endpoint)
        names = store.names("deep/root")
        assert any(n.startswith("deep/root/ledger/") for n in names) and any(".lance/" in n for n in names)
        for name in names:
            assert b"plait-test-secret-7f3a" not in (store.get(name) or b""), name


@ON_A_FOLDER
def test_going_to_another_threshold_and_back_computes_nothing_the_second_time(made, near):
    folder, where, _, _ = made
    only = ["--to", "scores"]
    there = answer(plait("run", *where, *SMALL, *only, "clips.threshold=15", "--json", cwd=folder, env=near))
    by_name = {s["name"]: s for s in there["stages"]}
    assert by_name["clips"]["computed"] > 0
    assert by_name["scores"]["computed"] + by_name["scores"]["kept"] >= by_name["clips"]["rows_out"]
    assert by_name["scores"]["kept"] > 0  # clips that did not change keep their scores
    back = answer(plait("run", *where, *SMALL, *only, "--json", cwd=folder))
    asked = ("files", "videos", "images", "clips", "scores")
    assert {s["state"] for s in back["stages"] if s["name"] in asked} == {"fresh"}
