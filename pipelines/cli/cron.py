"""`plait evaluate --emit-cron`: the same look by somebody else's clock, as a manifest or a line to be applied."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from infra.types import UserError

KINDS = ("k8s", "crontab")
_SECRETS = "plait-store"


def emitted(kind: str, every_s: float, overrides: Sequence[str], image: str, address: str | None) -> str:
    """A CronJob of Kubernetes, or a line of a crontab. Looks that overlap wait for each other, so nothing doubles."""
    if kind not in KINDS:
        raise UserError(f"--emit-cron {kind} is not known: give one of {', '.join(KINDS)}")
    command = ["plait", "evaluate", "--once", *(["--address", address] if address else []), *overrides]
    schedule = schedule_of(every_s)
    if kind == "crontab":
        return f"{schedule} {shlex.join(command)}\n"
    import yaml

    return yaml.safe_dump(_cron_job(schedule, command, image), sort_keys=False)


def schedule_of(every_s: float) -> str:
    """Five fields of cron, UTC; only what divides an hour or a day evenly can be said in them."""
    minutes = round(every_s / 60)
    if every_s >= 60 and minutes * 60 == every_s:
        if minutes < 60 and 60 % minutes == 0:
            return f"*/{minutes} * * * *"
        hours = minutes // 60
        if minutes % 60 == 0 and hours < 24 and 24 % hours == 0:
            return f"0 */{hours} * * *"
        if minutes == 24 * 60:
            return "0 0 * * *"
    raise UserError(
        f"every {every_s:.0f} seconds is no schedule of cron: give minutes that divide an hour, hours that divide a"
        " day, or 1d, as in evaluation.every=10m"
    )


def _cron_job(schedule: str, command: Sequence[str], image: str) -> dict[str, Any]:
    container = {
        "name": "evaluate",
        "image": image,
        "args": list(command),
        "envFrom": [{"secretRef": {"name": _SECRETS, "optional": True}}],
        "resources": {"requests": {"cpu": "1", "memory": "4Gi"}},
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000},
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "plait-evaluate"},
        "spec": {
            "schedule": schedule,
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod}}},
        },
    }
