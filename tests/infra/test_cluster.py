"""Joining a Ray cluster with a token: what does not fit is one sentence, soon, and the token is written nowhere."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from infra.cluster import _same_versions, checked
from infra.types import RunError, UserError
from tests.conftest import REPO, plait

TOKEN = "0123456789abcdef-plait-test-token"
JOIN = """
import sys
from infra.cluster import connect
from infra.types import PlaitError
try:
    ray = connect(sys.argv[1], None)
    print(ray.get(ray.remote(lambda: "a task ran").remote()))
except PlaitError as error:
    print(type(error).__name__, error)
"""


AGAIN = """
import os
from infra.cluster import connect, disconnect
for token in ("a" * 32, "b" * 32):
    os.environ["RAY_AUTH_TOKEN"] = token
    ray = connect(None, 2)
    print(ray.get(ray.remote(lambda: "a task ran").remote()))
    disconnect()
"""


def clean(home: Path, **more: str) -> dict[str, str]:
    """An environment without any Ray but this one."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return plain | {"HOME": str(home), "PYTHONPATH": str(REPO), "RAY_USAGE_STATS_ENABLED": "0"} | more


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """`ray start --head` on loopback, asking for a token; its address."""
    home = Path(tempfile.mkdtemp(prefix="plait-"))  # short: the kernel allows 107 bytes for a socket's name
    port = free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--object-store-memory=80000000", f"--temp-dir={home}/ray"]
    environment = clean(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 150  # 4 s on an idle machine
    try:
        while "Ray runtime started" not in (home / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def joined(address: str, home: Path, **more: str) -> tuple[str, float]:
    """What connecting says, and how many seconds it took."""
    started = time.monotonic()
    command = [sys.executable, "-c", JOIN, address]
    done = subprocess.run(command, env=clean(home, **more), capture_output=True, text=True, timeout=60, check=False)
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip(), time.monotonic() - started


@pytest.mark.slow
def test_a_token_that_is_missing_or_wrong_is_one_sentence_and_the_right_one_runs_tasks(head, tmp_path):
    said, seconds = joined(head, tmp_path)
    assert said.startswith("UserError") and "asks for a token" in said and "RAY_AUTH_TOKEN" in said and seconds < 30
    said, seconds = joined(head, tmp_path, RAY_AUTH_TOKEN="wrong")
    assert said.startswith("UserError") and "refused our token" in said and "\n" not in said and seconds < 30
    said, _ = joined(head, tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "nowhere"))
    assert said.startswith("UserError") and "holds no token" in said
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    assert joined(head, tmp_path)[0] == "a task ran"
    (tmp_path / "elsewhere").write_text(TOKEN)
    assert joined(head, tmp_path / "src", RAY_AUTH_TOKEN_PATH=str(tmp_path / "elsewhere"))[0] == "a task ran"


@pytest.mark.slow
def test_a_run_on_a_cluster_with_a_token_writes_it_nowhere_and_doctor_checks_it(head, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text(f"one saywhat say{TOKEN}")
    where = ["pipeline=tests.toy:graph", "root=root", "tracking=none", "--address", head]
    ours = clean(tmp_path, RAY_AUTH_TOKEN=TOKEN)
    hidden = {k: None for k in os.environ if k.startswith("RAY_") and k not in ours}
    done = plait("run", "source=src", *where, cwd=tmp_path, env=ours | hidden)
    assert done.returncode == 0, done.stderr  # the toy's own job prints the word to the terminal; the log must not
    logs = plait("logs", "lengths", *where[:3], cwd=tmp_path, env=ours | hidden)
    assert "saywhat aloud" in logs.stdout and "say*** aloud" in logs.stdout and TOKEN not in logs.stdout
    for path in (tmp_path / "root" / "ledger" / "runs").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    wrong = plait("doctor", *where, cwd=tmp_path, env=ours | hidden | {"RAY_AUTH_TOKEN": "wrong"})
    assert wrong.returncode == 1 and "refused our token" in " ".join(wrong.stdout.split())


def test_an_address_where_no_ray_answers_is_one_sentence_within_seconds(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for port, why in ((free_port(), "refused"), (server.server_port, "something else answers there")):
        said, seconds = joined(f"127.0.0.1:{port}", tmp_path)
        assert said.startswith("RunError no Ray cluster answers") and why in said and "--address" in said
        assert "\n" not in said and seconds < 30
    server.shutdown()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("http://10.0.0.1:8265", "takes `plait run` alone"), ("ray://a:10001", "Ray client"), ("head", "HOST:PORT")],
)
def test_what_is_no_address_of_a_head_is_refused_at_once(address, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(address)


def test_another_version_is_named(tmp_path):
    with pytest.raises(RunError, match=r"runs Ray 2\.1\.0, here it is"):
        _same_versions("head:6379", {"ray_version": "2.1.0"})
    with pytest.raises(RunError, match=r"runs Python 3\.8\.1, here it is"):
        _same_versions("head:6379", {"python_version": "3.8.1"})


@pytest.mark.slow
def test_a_ray_of_our_own_listens_on_loopback_alone(ray):
    """Every port of its daemons, by the kernel's table."""
    import psutil

    daemons = [p for p in psutil.Process().children(recursive=True) if p.name() in ("gcs_server", "raylet")]
    assert len(daemons) >= 2
    heard = [c.laddr.ip for p in daemons for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert heard and {ip.removeprefix("::ffff:") for ip in heard} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_second_ray_of_one_process_takes_the_token_that_is_set_by_then(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], env=clean(tmp_path), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.split("\n")[:2] == ["a task ran"] * 2, done.stderr
