"""The code that a submitted run brings along: what an installation of this checkout would hold, and one's module."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import conf
from infra.types import UserError

HOME = Path(conf.__file__).parent.parent
MAX_MIB = 32
_NOTE = "plait-code.json"
"""Beside code that was sent: the commit that it is of."""
_NO_CODE = "cluster.code=false runs the plait that the cluster has"


def pack(pipeline: str, into: Path) -> tuple[int, int]:
    """Copy the code into a folder: plait's packages, and the module of a pipeline `module:function` that is not among
    them (of a package, the topmost one). Gives the number of files and of bytes."""
    listed = _packages()
    files = {path.relative_to(HOME): path for path in _of_plait(listed)}
    module = pipeline.partition(":")[0].partition(".")[0] if ":" in pipeline else ""
    if module and module not in listed["packages"]:
        files |= _of_module(module)
    num_bytes = sum(path.stat().st_size for path in files.values())
    if num_bytes > MAX_MIB << 20:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise UserError(f"the code to send has {num_bytes >> 20} MiB, the most of it {largest}: at most {MAX_MIB} are sent, and {_NO_CODE}")  # fmt: skip  # noqa: E501
    for place, path in files.items():
        (into / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / place)
    (into / _NOTE).write_text(json.dumps(version()))
    return len(files), num_bytes


def version() -> dict[str, Any] | None:
    """The commit that this code is of, and whether it was changed since; None where neither git nor a note tells."""
    if (HOME / _NOTE).exists():
        return json.loads((HOME / _NOTE).read_text())
    if not (HOME / ".git").exists():
        return None
    try:
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None  # git is not installed, or does not trust the folder's owner
    return {"commit": commit, "changed": bool(changed)}


def _git(*words: str) -> str:
    command = ["git", "-C", str(HOME), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _packages() -> dict[str, dict[str, list[str]]]:
    """What pyproject.toml lists for an installation."""
    project = HOME / "pyproject.toml"
    if not project.exists():
        raise UserError(f"plait is installed at {HOME}, which is no checkout to send: {_NO_CODE}")
    return tomllib.loads(project.read_text())["tool"]["setuptools"]


def _of_plait(listed: dict[str, dict[str, list[str]]]) -> Iterable[Path]:
    for package in listed["packages"]:
        yield from (HOME / package.replace(".", "/")).glob("*.py")
    for package, patterns in listed["package-data"].items():
        for pattern in patterns:
            yield from (HOME / package).glob(pattern)


def _of_module(module: str) -> dict[Path, Path]:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(
            f"the module {module} of the pipeline is no file here: give one with __init__.py, or {_NO_CODE}"
        )
    file = Path(found.origin)
    if file.name != "__init__.py":
        return {Path(file.name): file}
    every = (path for path in file.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(file.parent.parent): path for path in every}
