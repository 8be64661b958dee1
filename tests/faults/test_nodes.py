"""Runs as jobs of a Ray of several nodes: what is placed where, what the loss of a node costs, and what is then seen."""

from __future__ import annotations

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
from pipelines.standing import Standing
from tests.conftest import REPO, S3_CREDENTIALS, answered, plait
from tests.faults.nodes_world import WORDS
from tests.nodes import Nodes

PIPELINE = "pipeline=tests.faults.nodes_world"
SLOWLY = ["cluster.workers=3", "cluster.stages.lengths.shard_rows=2", "cluster.stages.lengths.batch_rows=2"]


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
    (tmp_path / "src").mkdir()
    for i in range(4):
        (tmp_path / "src" / f"{i}.txt").write_text(" ".join(WORDS[i::4]))
    return tmp_path


def laptop(nodes: Nodes, folder: Path) -> dict[str, str | None]:
    """The environment of a machine that is no node: its own home, the token, the credentials of the store."""
    hidden = dict.fromkeys((k for k in os.environ if k.startswith(("RAY_", "TOY_"))), None)
    return {**hidden, **S3_CREDENTIALS, "HOME": str(folder), "RAY_AUTH_TOKEN": nodes.token, "NO_PROXY": "*"}


def command(nodes: Nodes, folder: Path, graph: str = "graph", *more: str) -> list[str]:
    """`run` as a job, over a root that all nodes see."""
    there = [f"{PIPELINE}:{graph}", "source=src", "root=root", "tracking=none", f"cluster.shared=[{folder}]"]
    return ["run", *there, "--address", nodes.job_server, *SLOWLY, *more]


def begin(nodes: Nodes, folder: Path, arguments: list[str]) -> subprocess.Popen:
    """The command, not waited for."""
    given = os.environ | {"PYTHONPATH": str(REPO)} | laptop(nodes, folder)
    environment = {name: value for name, value in given.items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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
    folder = tmp_path_factory.mktemp("laptop")
    (folder / "src").mkdir()
    for i in range(4):
        (folder / "src" / f"{i}.txt").write_text(" ".join(WORDS[i::4]))
    store = ["storage=s3", "storage.root=s3://plait/nodes", f"storage.endpoint={s3_endpoint}"]
    there = [f"{PIPELINE}:graph", f"source={folder}/src", "tracking=none", *store]
    process = begin(nodes, folder, ["run", *there, f"cluster.shared=[{folder}]", "--address", nodes.job_server, *SLOWLY, "--json"])  # fmt: skip  # noqa: E501
    placed: set[str] = set()
    while process.poll() is None:
        placed |= nodes.running("ray::Host")
        time.sleep(0.2)
    said, shown = process.communicate()
    return {
        "code": process.returncode,
        "said": said,
        "shown": shown,
        "placed": placed,
        "there": there,
        "folder": folder,
    }


@pytest.mark.slow
def test_a_run_is_submitted_with_its_code_followed_and_ends_as_a_run_here_would(calm, nodes):
    from infra.s3_bucket import S3Bucket

    assert calm["code"] == 0, calm["shown"]
    result = json.loads(calm["said"].splitlines()[-1])
    assert result["ok"] and result["stages"][-1]["rows_out"] == len(WORDS)
    assert "lengths        done        48 rows" in calm["shown"] and "MiB" in calm["shown"]
    assert calm["placed"] == {"a", "b", "c"}  # stage actors on every node that has CPUs
    root = S3Bucket("s3://plait/nodes", calm["there"][-1].partition("=")[2])
    standing = Standing(root)
    (code,) = set(standing.store.scan(standing.snapshot("lengths"), ["code"])["code"].to_pylist())
    assert code.startswith(str(nodes.home)) and "working_dir_files" in code  # of this checkout, and not from it
    planned = answered("plan", *calm["there"], cwd=calm["folder"])
    assert {s["state"] for s in planned["stages"]} == {"fresh"}  # the keys are those of this machine
    run = Runs(root)
    record = run.record(result["run_id"])
    assert record["job"] == f"plait-{result['run_id']}" and record["job"] in calm["shown"]
    assert nodes.token not in calm["shown"] + calm["said"] + json.dumps(record)
