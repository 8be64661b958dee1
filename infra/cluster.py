"""Ray: connect to a cluster, or start one on this machine for the length of a run.

A cluster is asked before it is joined: by one call with a deadline to its head, which tells an address where nothing
answers, a token that is missing or wrong, and another version apart. `ray.init` would wait minutes for the same news.

The token is Ray's own (RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token) and goes nowhere but
into that call and into Ray.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from infra.types import RunError, UserError

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # data never passes through it: only task descriptions and results do
ASK_S = 10.0
"""How long the head of a cluster may take to answer."""
ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch, in spite of its name: at 0 a node calls itself 127.0.0.1 and its servers listen there alone; otherwise
Ray replaces 127.0.0.1 by the address of the network card and listens on all."""


def connect(address: str | None, num_cpus: int | None) -> Any:
    """The `ray` module, initialised: at `address` (or RAY_ADDRESS), else private to this process and on loopback."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    where = checked(address or os.environ.get("RAY_ADDRESS"))
    prepare(where)
    import ray

    if ray.is_initialized():
        return ray
    try:
        if where:
            ask(where)
            ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",  # whatever other Ray runs on this machine
                num_cpus=max(2, num_cpus or os.cpu_count() or 2),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise RunError(f"Ray could not be reached at {where or 'this machine'} ({why}): check --address") from error
    return ray


def answers(address: str) -> bool:
    """Whether somebody listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def disconnect() -> None:
    """Stop the private Ray, or leave the cluster."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def is_job_server(address: str) -> bool:
    """Whether an address is that of a job server, not of a cluster's head."""
    return address.startswith(("http://", "https://"))


def checked(address: str | None) -> str | None:
    """The address of a cluster's head, or None for a Ray of our own; one sentence for what is no such address."""
    if not address or address == "local":
        return None
    if is_job_server(address):
        raise UserError(
            f"{address} is the address of Ray's job server, which takes `plait run` alone: for other verbs run plait"
            " on a node of the cluster with --address HOST:PORT, the port of its head (Ray's default is 6379)"
        )
    if address.startswith("ray://"):
        raise UserError(f"{address} is for the Ray client, which plait does not use: run plait on a node of the cluster with --address HOST:PORT of its head")  # fmt: skip  # noqa: E501
    if address != "auto" and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):\d{1,5}", address):
        raise UserError(f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head, as in --address 10.0.0.1:6379")  # fmt: skip  # noqa: E501
    return address


def prepare(where: str | None) -> None:
    """What Ray reads of the environment while it is imported."""
    if where is None:
        os.environ[ONLY_LOOPBACK] = "0"
    elif token_is_given():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "ray" in sys.modules:  # it has read it already
        _apply_now()


def _apply_now() -> None:
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(ONLY_LOOPBACK, "1") != "0"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()  # else an earlier Ray's token goes to servers that ask for ours


def token_is_given() -> bool:
    """Whether Ray would find a token here."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or Path.home().joinpath(".ray", "auth_token").exists()


def _token() -> str | None:
    """The token by Ray's own rules."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        return AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True) or None
    except (AuthenticationError, RuntimeError):
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH={os.environ.get('RAY_AUTH_TOKEN_PATH')} holds no token:"
            " name a file with the cluster's token, or set RAY_AUTH_TOKEN"
        ) from None


def ask(address: str) -> None:
    """Ask the head at this address who it is and whether it takes our token; one sentence where it does not fit."""
    import grpc
    from ray._private import services
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as calls

    at = (services.canonicalize_bootstrap_address(address) if address == "auto" else address) or address
    token = _token()
    bearer = [("authorization", f"Bearer {token}")] if token else []
    channel = grpc.insecure_channel(at, options=[("grpc.enable_http_proxy", 0)])  # as Ray does it
    wanted: Any = messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")  # type: ignore[attr-defined]
    every: Any = messages.GetAllNodeInfoRequest()  # type: ignore[attr-defined]
    try:
        told = calls.InternalKVGcsServiceStub(channel).InternalKVGet(wanted, timeout=ASK_S, metadata=bearer).value
        nodes = calls.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(every, timeout=ASK_S, metadata=bearer)
    except grpc.RpcError as error:
        status: Any = error
        raise _refused(address, status.code().name, status.details() or "", token is not None) from None
    finally:
        channel.close()
    _same_versions(address, json.loads(told or b"{}"))
    _runs_here(address, {n.node_manager_address for n in nodes.node_info_list if n.state == 0})


def _refused(address: str, code: str, details: str, has_token: bool) -> UserError | RunError:
    if code == "UNAUTHENTICATED":
        what = "refused our token" if has_token else "asks for a token, and there is none here"
        return UserError(f"the Ray cluster at {address} {what}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the token, or put it into ~/.ray/auth_token")  # fmt: skip  # noqa: E501
    if "HTTP/2" in details:
        why = "something else answers there"
    elif code == "DEADLINE_EXCEEDED":
        why = f"nothing within {ASK_S:.0f} s"
    else:
        why = details.rsplit(": ", 1)[-1].strip("[]") or code
    return RunError(f"no Ray cluster answers at {address} ({why}): start one with `ray start --head`, or correct --address (the head's port is 6379 by default)")  # fmt: skip  # noqa: E501


def _same_versions(address: str, told: dict[str, Any]) -> None:
    """Ray speaks to its own version only, and pickles need the same Python."""
    import ray

    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    digits = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    short = {"ray_version": 3, "python_version": digits}
    for name, number in short.items():
        there = told.get(name, here[name])
        if there.split(".")[:number] != here[name].split(".")[:number]:
            word = "Ray" if name == "ray_version" else "Python"
            raise RunError(f"the cluster at {address} runs {word} {there}, here it is {here[name]}: install the same version on both sides")  # fmt: skip  # noqa: E501


def _runs_here(address: str, nodes: set[str]) -> None:
    """A driver needs a node of the cluster on its own machine."""
    import psutil

    if nodes == {"127.0.0.1"}:
        os.environ[ONLY_LOOPBACK] = "0"
        _apply_now()
    mine = {found.address for card in psutil.net_if_addrs().values() for found in card}
    if not nodes & mine:
        raise RunError(
            f"no node of the Ray cluster at {address} runs on this machine: run plait on one of its nodes"
            f" ({', '.join(sorted(nodes)[:4]) or 'it has none'})"
        )
