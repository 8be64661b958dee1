"""Runs as jobs of a Ray of several nodes: what is placed where, what the loss of a node costs, what is seen then."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.folder_bucket import LocalBucket
from infra.runs import Runs
from infra.s3_bucket import S3Bucket
from pipelines.standing import Standing
from tests.conftest import REPO, S3_CREDENTIALS, answered, plait
from tests.faults.nodes_world import WORDS, with_source
from tests.nodes import Nodes
from tests.pipelines.test_evaluate import SMALL, Root

PIPELINE = "pipeline=tests.faults.nodes_world"
SLOWLY = ["cluster.workers=3", "cluster.stages.lengths.shard_rows=2", "cluster.stages.lengths.batch_rows=2"]
TOLD = "a-secret-that-is-told"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and three nodes of one CPU each."""
    made = Nodes()
    try:
        made.add("a", "b", "c")
        yield made
    finally:
        made.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where a person stands, with a source."""
    return with_source(tmp_path)


def laptop(nodes: Nodes, folder: Path) -> dict[str, str | None]:
    """The environment of a machine that is no node: its own home, the token, the credentials of the store."""
    hidden = dict.fromkeys((k for k in os.environ if k.startswith(("RAY_", "TOY_"))), None)
    return {**hidden, **S3_CREDENTIALS, "HOME": str(folder), "RAY_AUTH_TOKEN": nodes.token, "TOLD_TOKEN": TOLD}


def command(nodes: Nodes, folder: Path, graph: str = "graph", *more: str) -> list[str]:
    """`run` as a job, over a root that all nodes see."""
    there = [f"{PIPELINE}:{graph}", "source=src", "root=root", "tracking=none", f"cluster.shared=[{folder}]"]
    slowly = SLOWLY if graph == "graph" else []
    return ["run", *there, "--address", nodes.job_server, *slowly, *more]


def begin(nodes: Nodes, folder: Path, arguments: list[str]) -> subprocess.Popen:
    """The command, not waited for."""
    given = os.environ | {"PYTHONPATH": str(REPO)} | laptop(nodes, folder)
    environment = {name: value for name, value in given.items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # tests that were started in the background hand an ignored SIGINT down, and Python would never hear Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def until(true: Callable[[], Any], process: subprocess.Popen, seconds: float = 90) -> Any:
    """Wait for something while a command runs."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=5)
        time.sleep(0.05)
    return found


def shards(folder: Path, dataset: str = "lengths") -> int:
    """Finished shards of a stage."""
    return len(list((folder / "root" / "ledger" / dataset).glob("*/shard.*")))


def digests(root: Any) -> dict[str, str]:
    """What stands, by the digests of its keys."""
    standing = Standing(root)
    return {name: standing.snapshot(name).digest for name in standing.order()}


def assert_whole(folder: Path) -> dict[str, str]:
    """Every word has its row, and none was blamed; the digests."""
    standing = Standing(LocalBucket(folder / "root"))
    labels = standing.store.scan(standing.snapshot("lengths"), ["label"])["label"].to_pylist()
    assert sorted(labels) == sorted(WORDS) and standing.done("lengths")["quarantined"] == 0
    return digests(LocalBucket(folder / "root"))


@pytest.fixture(scope="module")
def calm(nodes: Nodes, s3_endpoint: str, tmp_path_factory) -> dict[str, Any]:
    """A submitted run that nobody disturbed, over a root in a store: what was said, where it worked, what it made."""
    folder = with_source(tmp_path_factory.mktemp("laptop"))
    store = ["storage=s3", "storage.root=s3://plait/nodes", f"storage.endpoint={s3_endpoint}"]
    there = [f"{PIPELINE}:graph", f"source={folder}/src", "tracking=none", *store]
    here = [f"cluster.shared=[{folder}]", "cluster.env=[TOLD_TOKEN]", "--address", nodes.job_server, *SLOWLY, "--json"]
    process = begin(nodes, folder, ["run", *there, *here])
    placed: set[str] = set()
    while process.poll() is None:
        placed |= nodes.running("ray::Host")
        time.sleep(0.2)
    said, shown = process.communicate()
    root = S3Bucket("s3://plait/nodes", s3_endpoint)
    return {
        "root": root,
        "digests": digests(root),
        "code": process.returncode,
        "said": said,
        "shown": shown,
        "placed": placed,
        "there": there,
        "folder": folder,
    }


@pytest.mark.slow
def test_a_run_is_submitted_with_its_code_followed_and_ends_as_a_run_here_would(calm, nodes):
    assert calm["code"] == 0, calm["shown"]
    result = json.loads(calm["said"].splitlines()[-1])
    assert result["ok"] and result["stages"][-1]["rows_out"] == len(WORDS)
    assert "lengths        done        48 rows" in calm["shown"] and "MiB" in calm["shown"]
    assert calm["placed"] == {"a", "b", "c"}  # stage actors on every node that has CPUs
    standing = Standing(calm["root"])
    (code,) = set(standing.store.scan(standing.snapshot("lengths"), ["code"])["code"].to_pylist())
    assert code.startswith(str(nodes.home)) and "working_dir_files" in code  # of this checkout, and not from it
    planned = answered("plan", *calm["there"], cwd=calm["folder"])
    assert {s["state"] for s in planned["stages"]} == {"fresh"}  # the keys are those of this machine
    record = Runs(calm["root"]).record(result["run_id"])
    assert record["job"] == f"plait-{result['run_id']}" and record["job"] in calm["shown"]
    (told,) = set(standing.store.scan(standing.snapshot("lengths"), ["told"])["told"].to_pylist())
    assert told == hashlib.sha256(TOLD.encode()).hexdigest()  # the actors had it by cluster.env
    log = json.dumps(Runs(calm["root"]).log(result["run_id"]))
    for secret in (nodes.token, TOLD, S3_CREDENTIALS["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in calm["shown"] + calm["said"] + json.dumps(record) + log


@pytest.mark.slow
@pytest.mark.parametrize(("token", "sentence"), [(None, "asks for a token"), ("wrong", "refused our token")])
def test_a_token_that_is_missing_or_wrong_is_one_sentence(token, sentence, nodes, here):
    asked = time.monotonic()
    done = plait(*command(nodes, here), cwd=here, env=laptop(nodes, here) | {"RAY_AUTH_TOKEN": token})
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert time.monotonic() - asked < 30 and not (here / "root").exists()
    doctor = plait("doctor", *command(nodes, here)[1:8], cwd=here, env=laptop(nodes, here))
    assert "a job server answers with our token" in " ".join(doctor.stdout.split()), doctor.stdout


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_row_and_no_blame(nodes, here, calm):
    process = begin(nodes, here, command(nodes, here))
    until(lambda: shards(here) >= 4 and len(nodes.running("ray::Host")) == 3, process)
    nodes.kill("c")
    _, shown = process.communicate(timeout=90)
    assert process.returncode == 0, shown
    assert assert_whole(here) == calm["digests"]
    nodes.add("c")


@pytest.mark.slow
def test_a_run_goes_on_without_whoever_followed_it_and_the_same_submission_adopts_it(nodes, here):
    alone = command(nodes, here, "graph", "cluster.workers=1")  # 12 s: it still goes on when we look for it
    first = begin(nodes, here, alone)
    until(lambda: shards(here) >= 2, first)
    first.send_signal(signal.SIGINT)
    _, shown = first.communicate(timeout=20)
    (going,) = Runs(LocalBucket(here / "root")).going()
    assert first.returncode == 1 and "plait logs --follow --run" in shown and "plait cancel" in shown, shown
    assert going["job"] == f"plait-{going['run_id']}" and going["command"][0] == "run"
    root = [f"root={here}/root"]
    second = begin(nodes, here, [*alone, "--json"])
    said, shown = second.communicate(timeout=90)
    assert second.returncode == 0, shown
    (lengths,) = [s for s in json.loads(said.splitlines()[-1])["stages"] if s["name"] == "lengths"]
    assert (lengths["computed"], lengths["rows_out"]) == (0, len(WORDS))
    assert answered("logs", "--run", going["run_id"], *root, cwd=here)["state"] == "ended"
    assert_whole(here)


@pytest.mark.slow
def test_a_submitted_run_is_cancelled_by_the_root_and_a_sentence_of_the_cluster_is_its_end(nodes, here):
    process = begin(nodes, here, command(nodes, here))
    until(lambda: shards(here) >= 2, process)
    asked = answered("cancel", f"root={here}/root", cwd=here)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 1 and asked["asked"]
    assert "plait: cancelled by" in shown and "--address http" in shown, shown  # the command that was typed here
    early = begin(nodes, here, [*command(nodes, here), "--to", "nothing"])
    _, shown = early.communicate(timeout=60)
    assert early.returncode == 2 and "nothing" in shown.splitlines()[-1], shown


@pytest.mark.slow
def test_checkpoints_are_scored_by_a_job_and_nothing_is_sent_where_nothing_is_left_to_score(nodes, tmp_path):
    root = Root(tmp_path)
    root.save(10)
    there = [f"root={root.bucket.folder}", *SMALL, f"cluster.shared=[{tmp_path}]", "--address", nodes.job_server]
    page = tmp_path / "scores.html"
    process = begin(nodes, tmp_path, ["evaluate", *there, "--page", str(page), "--json"])
    said, shown = process.communicate(timeout=120)
    assert process.returncode == 0 and "as Ray job plait-" in shown, shown
    found = json.loads(said.splitlines()[-1])
    assert found["run"]["job"].startswith("plait-") and {row["step"] for row in found["scores"]} == {10}
    assert len(found["scores"]) == len(root.scores()) and "composition" in page.read_text()
    again = plait("evaluate", *there, cwd=tmp_path, env=laptop(nodes, tmp_path))
    assert again.returncode == 0 and "Nothing to do" in again.stdout and "Ray job" not in again.stderr, again.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)  # workers start four times, and each imports torch: 208 s at a load of 13
def test_a_training_that_loses_a_node_and_then_the_last_spare_one_publishes_the_same_weights(
    nodes, here, tmp_path_factory
):
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    (undisturbed / "src").symlink_to(here / "src")
    model = ["cluster.stages.model.workers=2"]
    calm = plait(*command(nodes, undisturbed, "training", *model), cwd=undisturbed, env=laptop(nodes, undisturbed))
    assert calm.returncode == 0, calm.stderr
    process = begin(nodes, here, command(nodes, here, "training", *model))
    for step in (10, 20):  # at the second loss no node is spare
        saved = f"checkpoints/model/*/step-0000{step}.json"
        until(lambda saved=saved: list((here / "root").glob(saved)), process)
        working = nodes.running("ray::RayTrainWorker")
        assert len(working) == 2
        nodes.kill(sorted(working)[-1])
    runs = Runs(LocalBucket(here / "root"))
    until(lambda: "waits for machines" in str(runs.shown(runs.pick(None))), process, 120)
    nodes.add("d")
    _, shown = process.communicate(timeout=120)
    assert "the cluster 1 CPUs" in shown and "cluster.stages.model.workers=1" in shown
    assert process.returncode == 0, shown
    assert digests(LocalBucket(here / "root")) == digests(LocalBucket(undisturbed / "root"))


@pytest.mark.slow
def test_a_lost_head_ends_the_run_in_one_sentence_and_the_same_command_goes_on_over_a_new_one(nodes, here, calm):
    process = begin(nodes, here, command(nodes, here))
    until(lambda: shards(here) >= 6, process)
    nodes.kill("head")
    _, shown = process.communicate(timeout=60)
    last = shown.splitlines()[-1]
    assert process.returncode == 1 and last.startswith("plait: run ") and "was killed" in last and "again" in last
    root = [f"root={here}/root"]
    killed = answered("status", *root, cwd=here)["killed"]
    assert killed["job"] == f"plait-{killed['run_id']}" and killed["command"][0] == "run"
    assert answered("logs", *root, cwd=here)["state"] == "killed"
    before = shards(here)
    anew = Nodes()
    try:
        anew.add("a", cpus=2)
        done = plait(*command(anew, here), "--json", cwd=here, env=laptop(anew, here))
    finally:
        anew.close()
    assert done.returncode == 0 and shards(here) == len(WORDS) // 2, done.stderr
    (lengths,) = [s for s in json.loads(done.stdout.splitlines()[-1])["stages"] if s["name"] == "lengths"]
    assert lengths["computed"] <= len(WORDS) - 2 * before + 2 * 3
    assert assert_whole(here) == calm["digests"]
