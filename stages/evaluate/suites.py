"""The suites by name. Not a stage."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from infra.types import UserError
from stages.evaluate.suite import Suite

_SUITES = {
    "composition": ("suite_composition", "Composition"),
}


def suite_of(name: str, options: Mapping[str, Any] | None = None) -> Suite:
    """The suite of a name, or a sentence with those that exist."""
    if name not in _SUITES:
        raise UserError(f"{name!r} is no suite: choose among {', '.join(_SUITES)}")
    module, of = _SUITES[name]
    suite = getattr(importlib.import_module(f"stages.evaluate.{module}"), of)
    known = {field.name for field in fields(suite)}
    if unknown := sorted(set(options or {}) - known):
        raise UserError(f"{name} has no option {unknown[0]!r}: its options are {', '.join(sorted(known)) or 'none'}")
    return suite(**(options or {}))


def revisions() -> dict[str, int]:
    """Of the suites that are not as they first were: in the key of verdicts, which a new suite must not move."""
    found = {name: suite_of(name).revision for name in _SUITES}
    return {name: revision for name, revision in found.items() if revision != 1}
