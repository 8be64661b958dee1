"""Fixtures: a Ray for the whole session, toy sources, and a run of the toy pipeline in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from infra.folder_bucket import LocalBucket
from pipelines.ask import Ask
from pipelines.config import config_of
from pipelines.plan import Planner
from pipelines.run import Result, Runner, Services
from tests import toy

# Two processes share two cores: a second thread of torch would spin while the other process computes. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).parent.parent
SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", REPO.parent / "shared" / "data"))


LONGEST_FIRST = (
    "test_demo", "faults/test_nodes", "faults/test_hang", "faults/test_kill", "faults/test_matrix", "stages/test_ranks",
    "test_tutorial", "test_curate", "pipelines/test_going", "infra/test_cluster", "faults/test_thousand",
    "stages/test_tokenizer", "faults/test_head", "faults/test_pause", "faults/test_properties", "faults/test_security",
    "faults/test_cut_off",
)  # fmt: skip
"""Files of minutes. Two processes take files from the front: with the long ones in front they end together."""


def pytest_collection_modifyitems(config, items):
    """The long files first where processes share them; and a test that needs the shared data says so by the marker
    `shared`."""
    if hasattr(config, "workerinput"):
        rank = {f"tests/{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))
    skip = pytest.mark.skip(reason=f"the shared data is not at {SHARED}: set PLAIT_SHARED_DATA")
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data; skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not at {SHARED}: set PLAIT_SHARED_DATA")
    return SHARED


S3_SECRET = "plait-test-secret-7f3a"
S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "plait-test-id", "AWS_SECRET_ACCESS_KEY": S3_SECRET, "AWS_REGION": "us-east-1"}


class Quiet:
    """Progress that nobody sees."""

    def __init__(self):
        self.notes = []

    def stage(self, *_):
        """Nothing."""

    def finished(self, _):
        """Nothing."""

    def note(self, sentence):
        """Kept for the test."""
        self.notes.append(sentence)


@pytest.fixture(scope="session")
def toy_marks(tmp_path_factory):
    """The folder in which toy stages leave a mark per call; actors learn of it from the environment."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "calls").mkdir()
    # drivers of the tests share one Ray, which asks for a token
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
    os.environ |= S3_CREDENTIALS  # actors learn of them from the environment in which Ray starts
    os.environ |= {"TOY_CALLS": str(folder / "calls"), "TOY_BUSY": str(folder / "busy"), "PYTHONPATH": str(REPO)}
    return folder


@pytest.fixture(scope="session")
def ray(toy_marks):
    """One private Ray for all tests of this process."""
    from infra.cluster import connect, disconnect

    yield connect(None, 2)
    disconnect()


@pytest.fixture(scope="session")
def near(ray) -> dict[str, str]:
    """The environment in which a command joins the Ray of the tests: starting one costs many seconds."""
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


class Toy:
    """The toy pipeline over a folder of texts: `run()` and `plan()` with settings, calls counted."""

    def __init__(self, folder: Path, marks: Path, ray=None, root=None, source=None):
        self.source = folder / "src"
        self.source.mkdir(exist_ok=True)
        self.calls_folder = marks / "calls"
        self.busy = marks / "busy"
        self.forget_calls()
        self.root = root or LocalBucket(folder / "root")
        self.source_bucket = source or LocalBucket(self.source)
        self.ray = ray
        self.ray_asked = 0

    def write(self, name: str, text: str) -> None:
        """One raw text file."""
        (self.source / name).write_text(text)

    def config(self, select=None, stages=None, **settings):
        """A configuration as Hydra would give it."""
        place = {"lengths": {"shard_rows": 4, "batch_rows": 3, "deadline_s": 4.0}, "words": {"shard_rows": 2}}
        plain = {"pipeline": "toy", "root": "unused", "source": None}
        plain |= {name: {} for name in ("storage", "tracking", "sample", "evaluation")}
        cluster = {"workers": 2, "stages": place | (stages or {})}
        return config_of(plain | {"cluster": cluster, "select": select or {}} | settings)

    def planner(self, ask=None, **config) -> Planner:
        """A planner for the toy graph."""
        return Planner(toy.graph(self.config(**config)), self.root, self.source_bucket, ask or Ask())

    def plan(self, ask=None, **config) -> dict[str, dict]:
        """The plan by stage."""
        return {p.name: p.to_json() for p in self.planner(ask, **config).plan_all()}

    def run(self, ask=None, tracker=None, **config) -> dict[str, dict]:
        """Run, and give the entries by stage."""
        return {s["name"]: s for s in self.result(ask, tracker, **config).stages}

    def result(self, ask=None, tracker=None, **config) -> Result:
        """Run, and give the whole result."""

        def ray_asked():
            self.ray_asked += 1
            return self.ray

        self.progress = Quiet()
        services = Services(
            self.root,
            self.source_bucket,
            ray_asked,
            tracker or (lambda: None),
            lambda *_: {},
            self.progress,
            "run again",
        )
        return Runner(self.planner(ask, **config), services, ask or Ask(), {}).run()

    def calls(self, stage: str) -> int:
        """Rows processed by a stage since the last `forget_calls`."""
        return len(list(self.calls_folder.glob(f"{stage}-*")))

    def forget_calls(self) -> None:
        """Start counting anew."""
        for mark in self.calls_folder.iterdir():
            mark.unlink()

    def rows(self, dataset: str, columns: list[str]) -> list[dict]:
        """Rows of the newest materialisation."""
        from pipelines.standing import Standing

        standing = Standing(self.root)
        return standing.store.scan(standing.snapshot(dataset), columns).to_pylist()


@pytest.fixture
def make_toy(tmp_path, ray, toy_marks):
    """A Toy on a fresh folder, with the calls of actors counted."""

    def make(**kwargs) -> Toy:
        return Toy(tmp_path, toy_marks, ray, **kwargs)

    return make


def plait(
    *arguments: str, cwd: Path, env: dict[str, str | None] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess:
    """The command as a person runs it; a variable that is None is taken away."""
    given = os.environ | {"PYTHONPATH": str(REPO)} | (env or {})
    environment = {name: value for name, value in given.items() if value is not None}
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def answered(*arguments: str, cwd: Path) -> dict[str, Any]:
    """The JSON object of a verb that starts no Ray, asked in this process: another one would import for seconds."""
    from pipelines.cli import main, show

    said = io.StringIO()
    with contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "_stdout", said)
        main.app([*arguments, "--json"], standalone_mode=False)
    return json.loads(said.getvalue().splitlines()[-1])


@pytest.fixture(scope="session")
def s3_endpoint():
    """An S3 store on loopback with the bucket `plait`; credentials are in the environment, as they must be."""
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    os.environ |= S3_CREDENTIALS
    lock, put_object = threading.Lock(), S3Response.put_object

    def one_at_a_time(response):  # moto looks first and puts then: of two racing writers both would win
        with lock:
            return put_object(response)

    S3Response.put_object = one_at_a_time
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="plait")
    yield endpoint
    server.stop()
    S3Response.put_object = put_object
