"""Kubernetes' manifests with the values filled in, on standard output: what the tests check is what is applied.

    python infra/deploy/render.py [VALUES] [--only NAME ...] | kubectl apply -f -

`{{ a.b }}` in a manifest stands for a value, `{{ indent 4 file PATH }}` for a file of the repository. No loops and no
conditions: who wants other manifests edits them, or has kustomize patch what comes out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
MANIFESTS = HERE / "kubernetes"
_PLACE = re.compile(r"\{\{ *([\w.]+) *\}\}|\{\{ *indent (\d+) file (\S+) *\}\}")


def render(values: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """The manifests of these names, or all, as one stream of documents."""
    known = {path.stem: path for path in sorted(MANIFESTS.glob("*.yaml"))}
    if unknown := sorted(set(names) - known.keys()):
        raise SystemExit(f"there is no manifest {', '.join(unknown)}: there are {', '.join(known)}")
    flat = dict(_flat(values))
    return "---\n".join(_filled(known[name], flat) for name in names or known)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _filled(path: Path, values: Mapping[str, Any]) -> str:
    def fill(found: re.Match[str]) -> str:
        name, indent, file = found.groups()
        if file:
            lines = (REPOSITORY / file).read_text().splitlines(keepends=True)
            return (" " * int(indent)).join(lines).rstrip("\n")
        if name not in values:
            raise SystemExit(f"{path.name} asks for the value {name}: give it in the values file, as values.yaml does")
        return str(values[name])

    return _PLACE.sub(fill, path.read_text())


def main() -> None:
    """The command."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", nargs="?", type=Path, default=HERE / "values.yaml")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME")
    given = parser.parse_args()
    sys.stdout.write(render(yaml.safe_load(given.values.read_text()), given.only))


if __name__ == "__main__":
    main()
