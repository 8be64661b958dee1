"""Ray: connect to a cluster, or start one on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import Any

from infra.types import RunError

LOCAL_OBJECT_STORE_BYTES = 256 << 20  # data never passes through it: only task descriptions and results do


def connect(address: str | None, num_cpus: int | None) -> Any:
    """The `ray` module, initialised: at `address` (or RAY_ADDRESS), else private to this process and on loopback."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    if ray.is_initialized():
        return ray
    where = address or os.environ.get("RAY_ADDRESS")
    try:
        if where:
            ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(2, num_cpus or os.cpu_count() or 2),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise RunError(
            f"Ray could not be reached at {where or 'this machine'} ({error}): check cluster.address"
        ) from error
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
