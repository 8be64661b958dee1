"""Ray's job server: hand it a command with its code, and ask later what became of it.

It is asked before anything is sent, with a deadline: an address where nothing answers, a token that is missing or
wrong, and another version of Ray are one sentence each. Ray's own client would wait for ever for some of them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.cluster import ASK_S, answers, prepare, token_is_given
from infra.types import RunError, UserError, without_secrets

SUBMIT_S = 120.0
"""How long the server may take to answer to the code or the command: its first job starts an agent."""
LOG_TAIL = 20
_NAMED_BY_RAY = "job_submission_id"
_RUN, _COMMAND = "plait_run", "plait_command"


@dataclass(frozen=True)
class Submitted:
    """What the present process knows of the Ray job whose command it runs."""

    job: str
    run_id: str | None = None
    """The run that whoever submitted it waits for; None where somebody else's tool submitted the command."""
    command: tuple[str, ...] | None = None
    """The command as it was typed there."""


def submitted() -> Submitted | None:
    """The Ray job that this process is the command of, by what Ray's job server puts into its environment."""
    found = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    if _NAMED_BY_RAY not in found:
        return None
    command = json.loads(found[_COMMAND]) if _COMMAND in found else None
    return Submitted(found[_NAMED_BY_RAY], found.get(_RUN), tuple(command) if command else None)


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    exit_code: int
    said: list[str]
    """The last lines of its output."""


class JobServer:
    """The job server at an address, which has been asked."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._named = without_secrets(self.address)
        self.version = ""
        prepare(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else Ray would rather take RAY_ADDRESS
        self._client = self._asked()

    def submit(self, run_id: str, command: Sequence[str], typed: Sequence[str], code: Path | None, env: Mapping[str, str]) -> str:  # fmt: skip  # noqa: E501
        """Have `command` run on the head as a job, over a folder of code; the job's id."""
        import requests

        runtime_env: dict[str, Any] = {"env_vars": dict(env)} if env else {}
        if code is not None:
            runtime_env["working_dir"] = str(code)
        about = {_RUN: run_id, _COMMAND: json.dumps(list(typed))}
        try:
            return self._client.submit_job(
                entrypoint=f"exec {shlex.join(command)}",
                submission_id=f"plait-{run_id}",
                runtime_env=runtime_env,
                metadata=about,
            )
        except (RuntimeError, ValueError, requests.RequestException) as error:
            why = " ".join(str(error).split())[:300]
            raise RunError(f"the job server at {self._named} did not take the run ({why}): try again, or run plait on a node with --address HOST:PORT") from error  # fmt: skip  # noqa: E501

    def is_running(self, job: str) -> bool | None:
        """Whether the job waits or runs; None where the server does not answer."""
        import requests

        try:
            return not self._client.get_job_info(job).status.is_terminal()
        except (RuntimeError, requests.RequestException):
            return None

    def ended(self, job: str) -> Ended:
        """How a job ended that runs no more."""
        import requests

        try:
            told = self._client.get_job_info(job)
            lines = [line for line in self._client.get_job_logs(job).splitlines() if line.strip()]
        except (RuntimeError, requests.RequestException):
            return Ended(1, [])
        code = 0 if told.status == "SUCCEEDED" else told.driver_exit_code or 1
        return Ended(code, lines[-LOG_TAIL:] or [told.message or ""])

    def _asked(self) -> Any:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            client = _client(self.address)
        except AuthenticationError:
            what = "refused our token" if token_is_given() else "asks for a token, and there is none here"
            raise UserError(f"the Ray job server at {self._named} {what}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the token, or put it into ~/.ray/auth_token") from None  # fmt: skip  # noqa: E501
        except requests.Timeout:
            raise self._nobody(f"nothing within {ASK_S:.0f} s") from None
        except ConnectionError:
            found = urlsplit(self.address)
            where = f"{found.hostname}:{found.port or (443 if found.scheme == 'https' else 80)}"
            raise self._nobody("something else answers there" if answers(where) else "no connection") from None
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            if "running on the cluster" in str(error):
                raise self._another(str(error).split()[2]) from None
            raise self._nobody("something else answers there") from None
        import ray

        self.version = there = str(client._server_ray_version)
        if there.split(".")[:2] != ray.__version__.split(".")[:2]:
            raise self._another(there)
        client.patience_s = SUBMIT_S
        return client

    def _nobody(self, why: str) -> RunError:
        return RunError(f"no Ray job server answers at {self._named} ({why}): start the cluster with its dashboard, or correct --address (http://HEAD:8265 by default)")  # fmt: skip  # noqa: E501

    def _another(self, there: str) -> RunError:
        import ray

        return RunError(f"the cluster at {self._named} runs Ray {there}, here it is {ray.__version__}: install the same version on both sides")  # fmt: skip  # noqa: E501


def _client(address: str) -> Any:
    """Ray's client, with a deadline for each of its requests."""
    import ray  # noqa: F401  # pyright: ignore[reportUnusedImport] - its loggers are set up by it
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        patience_s = ASK_S

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **kwargs, timeout=(ASK_S, self.patience_s))

    for name in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    return Client(address)
