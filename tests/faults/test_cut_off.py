"""Hosts of their own, as network namespaces with a private folder for temporary files: one is cut off in mid-run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.folder_bucket import LocalBucket
from tests.conftest import plait
from tests.faults import test_nodes as together
from tests.faults.nodes_world import with_source
from tests.nodes import Nodes

NAMES = ("head", "a", "b")


def ip(*arguments: str) -> None:
    """The command of that name, which must succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextmanager
def namespaces(mark: str) -> Iterator[list[str]]:
    """Network namespaces by the names of NAMES; their addresses, and at the end they are gone.

    The bridge that joins them, and this process, is in a namespace too: what the machine's own firewall says of
    bridges (docker has it drop what goes over others than its own) does not hold there.
    """
    net, switch = f"10.93.{os.getpid() % 250}", f"{mark}sw"
    spaces = [switch, *(f"{mark}{name}" for name in NAMES)]
    try:
        for space in spaces:
            ip("netns", "add", space)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        ip("link", "add", f"{mark}me", "type", "veth", "peer", "name", "me", "netns", switch)
        ip("addr", "add", f"{net}.1/24", "dev", f"{mark}me")
        ip("link", "set", f"{mark}me", "up")
        for number, name in enumerate(NAMES, 2):
            ip(
                "-n",
                switch,
                "link",
                "add",
                "name",
                name,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                f"{mark}{name}",
            )
            ip("-n", f"{mark}{name}", "addr", "add", f"{net}.{number}/24", "dev", "eth0")
            ip("-n", f"{mark}{name}", "link", "set", "eth0", "up")
            ip("-n", f"{mark}{name}", "link", "set", "lo", "up")
        for name in ("me", *NAMES):
            ip("-n", switch, "link", "set", "dev", name, "master", "bridge", "up")
        yield [f"{net}.{number}" for number, _ in enumerate(NAMES, 2)]
    finally:
        subprocess.run(["ip", "link", "del", f"{mark}me"], check=False, capture_output=True)
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.fixture(scope="module")
def mark() -> str:
    """With what the names of these interfaces begin; the kernel allows 15 characters."""
    return f"pl{os.getpid() % 100_000}"


@pytest.fixture(scope="module")
def hosts(mark: str, tmp_path_factory) -> Iterator[Nodes]:
    """A head and two nodes of one CPU each, every one a host of its own."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces want `ip` and root")
    private = tmp_path_factory.mktemp("private")
    with namespaces(mark) as addresses:

        def inside(name: str) -> list[str]:
            mount = f'mount -t tmpfs none {private} && exec "$@"'
            return ["ip", "netns", "exec", f"{mark}{name}", "unshare", "-m", "sh", "-c", mount, "--"]

        made = Nodes(inside("head"), addresses[0], TMPDIR=str(private))
        try:
            for name, address in zip(NAMES[1:], addresses[1:], strict=True):
                made.add(name, inside=inside(name), ip=address)
            yield made
        finally:
            made.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where a person stands, with a source."""
    return with_source(tmp_path)


@pytest.mark.slow
def test_workers_of_a_training_share_no_folder_but_the_root(hosts, here):
    model = ["cluster.stages.model.workers=2"]
    done = plait(*together.command(hosts, here, "brief", *model), cwd=here, env=together.laptop(hosts, here))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_host_that_is_cut_off_in_mid_run_costs_no_row_and_no_blame(hosts, here, mark):
    process = together.begin(hosts, here, together.command(hosts, here))
    together.until(lambda: together.shards(here) >= 4 and hosts.running("ray::Host") == {"a", "b"}, process)
    ip("-n", f"{mark}sw", "link", "set", "dev", "b", "down")
    assert hosts.running("ray::Host") == {"a", "b"}  # it lives, and goes on with what it was told
    _, shown = process.communicate(timeout=90)
    assert process.returncode == 0, shown
    together.assert_whole(here)
    assert LocalBucket(here / "root").names("ledger/runs")
