"""What a run needs of its surroundings, looked at one by one: each finding is one sentence."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra import conformance
from infra.bucket import Bucket
from infra.conformance import Finding
from infra.folder_bucket import LocalBucket
from infra.types import PlaitError, without_secrets

MIN_FREE_BYTES = 2 << 30
NATIVE = ("av", "cv2", "lance", "onnxruntime", "torch")  # those that need libraries of the machine


def examine(root: Bucket, source: Bucket | None, tracker: Callable[[], Any], address: str | None) -> list[Finding]:
    """Every check; a check that fails never stops the others."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("conditional put", lambda: _one_winner(root)),
        ("clock", lambda: conformance.clock(root)),
        ("disk", lambda: _disk(root)),
        ("source", lambda: _source(source)),
        ("MLflow", lambda: _mlflow(tracker)),
        ("Ray", lambda: _ray(address)),
    ]
    return [_finding(what, check) for what, check in checks]


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except PlaitError as error:
        return Finding(what, False, str(error))


def _packages() -> str:
    """Installed versions against the bounds of this package."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in importlib.metadata.requires("plait") or []]
    wrong: list[str] = []
    for need in (r for r in wanted if r.marker is None):
        found = importlib.metadata.version(need.name)
        if not need.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{need.name} {found} (wanted {need.specifier})")
    if wrong:
        raise PlaitError(f"{', '.join(wrong)}: install plait again in a fresh environment")
    for name in NATIVE:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: of a library that is loaded by its path, as torch does
            raise PlaitError(f"{name} cannot be loaded ({error}): install the library that it names") from None
    return f"{sum(r.marker is None for r in wanted)} packages within their bounds"


def _one_winner(root: Bucket) -> str:
    """The one promise that everything stands on; `--storage` looks at the rest."""
    place = f"doctor/{os.urandom(8).hex()}"
    try:
        return f"{conformance.one_winner(root.below(place))} at {root.uri}"
    finally:
        root.clear(place)


def _disk(root: Bucket) -> str:
    folder = root.folder if isinstance(root, LocalBucket) else Path.cwd()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise PlaitError(f"{folder} has {free / 1e9:.1f} GB left: make room")
    return f"{free / 1e9:.0f} GB free at {folder}"


def _source(source: Bucket | None) -> str:
    if source is None:
        return "none given: the sample corpus will be used"
    first = next(iter(source.entries()), None)
    if first is None:
        raise PlaitError(f"{source.uri} holds no file: give source=DIR or source=s3://bucket/prefix")
    with source.local(first.path) as path, path.open("rb") as file:
        file.read(1)
    return f"{source.uri} can be listed and read"


def _mlflow(tracker: Callable[[], Any]) -> str:
    made = tracker()
    if made is None:
        return "tracking is off"
    if made.trouble:
        raise PlaitError(f"{made.trouble}: a run would go on without it, and `plait sync` tells it later")
    return f"reachable at {without_secrets(made.uri)}"


def _ray(address: str | None) -> str:
    if not address and not os.environ.get("RAY_ADDRESS"):
        return f"private, on this machine: {os.cpu_count()} CPUs"
    from infra.cluster import connect, disconnect, is_job_server, token_is_given
    from infra.jobs import JobServer

    with_token = "with our token" if token_is_given() else "without a token"
    if is_job_server(where := address or os.environ["RAY_ADDRESS"]):
        return f"a job server answers {with_token}, of Ray {JobServer(where).version}"
    resources = connect(address, None).cluster_resources()
    disconnect()
    return f"reachable {with_token}: {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs"
