"""Submitting a run: what is sent, what is refused before anything is, and servers that are none."""

import http.server
import json
import os
import socket
import sys
import threading
import time

import pytest

from infra import jobs
from infra.cluster import prepare
from infra.types import RunError, UserError
from pipelines.cli import checkout, main, submit
from tests.conftest import REPO

SERVER = "http://127.0.0.1:9"
IN_A_STORE = ["storage=s3", "storage.root=s3://b/p"]
WITH_SOURCE = [*IN_A_STORE, "source=s3://b/raw"]


@pytest.fixture(autouse=True)
def surroundings():
    """What asking a server changes in the environment, and in what Ray has read of it, is undone: the Ray of the tests
    that work in this process asks for its token."""
    before = {name: os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")}
    os.environ.update(dict.fromkeys(before, ""))
    yield
    for name, value in before.items():
        del os.environ[name]
        if value is not None:
            os.environ[name] = value
    if "ray" in sys.modules:
        prepare(None)


def run(monkeypatch, *arguments):
    """`plait run` in this process, up to the first question to the server."""
    monkeypatch.setattr(sys, "argv", ["plait", "run", *arguments])
    main.app(sys.argv[1:], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["source=s3://b/raw"], "root=plait-data is a folder of this machine.*cluster.shared="),
        (["root=/mnt/nfs/r", "source=raw", "cluster.shared=[/mnt/nfs]"], "source=raw is a folder of this machine"),
        (["root=/mnt/nfs/../r", "cluster.shared=[/mnt/nfs]"], "is a folder of this machine"),
        (IN_A_STORE, "tracking.uri is not set"),  # the sample corpus lies in the store, too
        (WITH_SOURCE, "tracking.uri is not set"),
        ([*IN_A_STORE, "source=/n/raw", "cluster.shared=[/n]"], "tracking.uri is not set"),
        ([*WITH_SOURCE, "tracking.uri=sqlite:///m.db"], "tracking.uri=m.db is a"),
        ([*WITH_SOURCE, "tracking.uri=http://u:p@h"], r"\*\*\*@h holds a secret"),
        (["root=/n/r", "cluster.shared=[/n]", "tracking=none", "cluster.env=[NOT_SET]"], "cluster.env names NOT_SET"),
    ],
)
def test_what_the_cluster_cannot_have_is_refused_before_anybody_is_asked(arguments, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id-of-tests")
    with pytest.raises(UserError, match=sentence):
        run(monkeypatch, *arguments, "--address", SERVER)
    assert list(tmp_path.iterdir()) == []


def test_the_value_of_a_secret_is_refused_and_not_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_API_KEY", "hunter2hunter2")
    with pytest.raises(UserError, match="holds a secret") as raised:
        run(monkeypatch, "root=/n/hunter2hunter2", "cluster.shared=[/n]", "tracking=none", "--address", SERVER)
    assert "hunter2" not in str(raised.value)


def test_detach_without_a_job_server_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="--detach is for a run that is submitted"):
        run(monkeypatch, f"root={tmp_path}", "--detach")


def test_the_command_goes_along_without_what_concerns_this_machine():
    typed = ["run", "a.b=1", "--address", SERVER, "--json", f"cluster.address={SERVER}", "--only", "x", f"--address={SERVER}"]  # fmt: skip  # noqa: E501
    assert submit.for_the_cluster([*typed, "--detach", "--force"]) == ["run", "a.b=1", "--only", "x", "--force"]


def test_the_code_that_is_sent_is_what_an_installation_holds_and_the_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine_alone.py").write_text("graph = None")
    monkeypatch.syspath_prepend(tmp_path / "here")
    into = tmp_path / "sent"
    num_files, num_bytes = checkout.pack("mine_alone:graph", into)
    sent = {str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()}
    sent.remove("plait-code.json")
    assert json.loads((into / "plait-code.json").read_text()) == checkout.version()
    assert len(sent) == num_files and num_bytes < 4 << 20
    assert {"mine_alone.py", "conf/config.yaml", "pipelines/cli/main.py", "infra/jobs.py"} <= sent
    assert {str(p.relative_to(REPO)) for p in (REPO / "stages" / "caption" / "prompts").glob("*.txt")} <= sent
    assert {name.partition("/")[0] for name in sent} == {
        "mine_alone.py", "conf", "dashboards", "infra", "models", "pipelines", "stages",
    }  # fmt: skip
    monkeypatch.setattr(checkout, "MAX_MIB", 0)
    with pytest.raises(UserError, match=r"at most 0 are sent, and cluster.code=false"):
        checkout.pack("demo", tmp_path / "again")
    assert not (tmp_path / "again").exists()


class Answers(http.server.BaseHTTPRequestHandler):
    """Says of itself what it is told to."""

    answer = (404, b"")

    def do_GET(self):
        """The same to everybody."""
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ((404, b""), RunError, "something else answers there"),
        ((200, b"<html>"), RunError, "something else answers there"),
        ((200, json.dumps({"ray_version": "2.1.0"}).encode()), RunError, r"runs Ray 2\.1\.0, here it is 2\."),
        ((200, json.dumps({"ray_version": "1.8.0"}).encode()), RunError, r"runs Ray 1\.8\.0, here it is 2\."),
    ],
)
def test_a_server_that_is_no_such_ray_is_one_sentence(answer, kind, sentence):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Told", (Answers,), {"answer": answer}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(kind, match=sentence):
        jobs.JobServer(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def test_nobody_and_somebody_who_is_silent_are_one_sentence_in_time(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(RunError, match=f"no Ray job server answers at http://127.0.0.1:{port}.*no connection"):
            jobs.JobServer(f"http://127.0.0.1:{port}")
        silent.listen()
        monkeypatch.setattr(jobs, "ASK_S", 1.0)
        asked = time.monotonic()
        with pytest.raises(RunError, match="nothing within 1 s"):
            jobs.JobServer(f"http://127.0.0.1:{port}")
        assert time.monotonic() - asked < 5


def test_a_process_knows_the_job_that_it_is_the_command_of(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert jobs.submitted() is None
    told = {"job_submission_id": "raysubmit_7", "job_name": "raysubmit_7"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}, "metadata": told}))
    assert jobs.submitted() == jobs.Submitted("raysubmit_7")  # of another tool, as KubeRay's RayJob
    assert os.environ["RAY_API_SERVER_ADDRESS"] == ""
