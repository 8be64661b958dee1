"""A real Ray cluster on this machine: each node a process tree of its own, which can be lost at once."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.conftest import S3_CREDENTIALS

START_S = 150.0
"""8 s on an idle machine."""
SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}
LOST_SOON = {f"RAY_{name}": str(value) for name, value in (SOON | {"health_check_failure_threshold": 4}).items()}
"""A node that is not heard counts as dead after seconds, where Ray would wait for the most of a minute."""


def own_ip() -> str:
    """This machine's address on its network card: Ray allows several nodes on no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("192.0.2.1", 9))  # sends nothing
        return made.getsockname()[0]


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands out."""
    found: list[int] = []
    while len(found) < number:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as made, suppress(OSError):
            made.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Nodes:
    """A head with a job server and any number of nodes. They know nothing of this checkout: a job brings its code."""

    def __init__(self, inside: Sequence[str] = (), ip: str = "", **environment: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))  # short: the kernel allows 107 bytes for a socket
        self.token = secrets.token_hex(16)
        self.port, self.jobs_port, client, agent = free_ports(4)
        self.ip = ip = ip or own_ip()
        self.processes: dict[str, subprocess.Popen] = {}
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH", "TOY_"))}
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.home)}
        self.environment = plain | S3_CREDENTIALS | LOST_SOON | ours | path | environment
        self.begin(
            "head", inside, ip, "--head", f"--port={self.port}", f"--dashboard-host={ip}", "--num-cpus=0",
            f"--dashboard-port={self.jobs_port}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.home}/ray",
        )  # fmt: skip
        self.await_started("head")

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{self.ip}:{self.port}"

    @property
    def job_server(self) -> str:
        """For `plait run --address`."""
        return f"http://{self.ip}:{self.jobs_port}"

    def begin(self, name: str, inside: Sequence[str], ip: str, *options: str) -> None:
        """`ray start --block` of a node, which is not waited for."""
        command = [*inside, str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        command += [f"--node-ip-address={ip}", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--object-store-memory=80000000", "--disable-usage-stats"]
        with (self.home / name).open("w") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )

    def add(self, *names: str, cpus: int = 1, inside: Sequence[str] = (), ip: str = "") -> None:
        """Nodes that work; one after the other, since on one machine they choose the names of their sockets."""
        for name in names:
            (agent,) = free_ports(1)
            at = (f"--address={self.address}", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}")
            self.begin(name, inside, ip or self.ip, *at)
            self.await_started(name)

    def await_started(self, name: str) -> None:
        """Until Ray says so."""
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in (said := (self.home / name).read_text()):
            assert self.processes[name].poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)

    def tree(self, name: str) -> list[psutil.Process]:
        """All processes of a node."""
        if (process := self.processes.get(name)) is None or process.poll() is not None:
            return []
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]

    def running(self, title: str) -> set[str]:
        """The nodes on which Ray runs workers whose title begins so, as `ray::Host`."""
        return {name for name in self.processes if any(_title(p).startswith(title) for p in self.tree(name))}

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node, as if its machine had lost power."""
        for process in self.tree(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes.pop(name).wait()

    def close(self) -> None:
        """All of it, at once."""
        for name in reversed(list(self.processes)):
            with suppress(ProcessLookupError):
                os.kill(self.processes[name].pid, signal.SIGSTOP)  # else it would see its children die, and report
            self.kill(name)
        shutil.rmtree(self.home, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""
