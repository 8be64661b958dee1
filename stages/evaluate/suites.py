"""The suites by name. Not a stage."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from infra.types import UserError
from stages import weights
from stages.evaluate.suite import Evidence, Judged, Suite

Options = Mapping[str, Mapping[str, int | float | str | bool | None]]
"""Suites' own settings, by the suite's name and theirs."""
_SUITES = {
    "background_consistency": ("suite_consistency", "BackgroundConsistency"),
    "captions": ("suite_captions", "Captions"),
    "clip_score": ("suite_clip", "ClipScore"),
    "composition": ("suite_composition", "Composition"),
    "dpg": ("suite_dpg", "Dpg"),
    "heldout": ("suite_heldout", "HeldoutLoss"),
    "geneval": ("suite_geneval", "GenEval"),
    "pictures_fid": ("suite_pictures", "Fid"),
    "pictures_pixels": ("suite_pictures", "PixelFrechet"),
    "subject_consistency": ("suite_consistency", "SubjectConsistency"),
    "t2i_attributes": ("suite_t2i", "Attributes"),
    "t2i_spatial": ("suite_t2i", "Spatial"),
    "vbench": ("suite_vbench", "VBench"),
}


def class_of(name: str) -> type[Suite]:
    """The suite of a name, or a sentence with those that exist."""
    if name not in _SUITES:
        raise UserError(f"{name!r} is no suite: choose among {', '.join(_SUITES)}")
    module, of = _SUITES[name]
    return getattr(importlib.import_module(f"stages.evaluate.{module}"), of)


def suite_of(name: str, options: Options) -> Suite:
    """A suite with its own settings."""
    suite, given = class_of(name), options.get(name, {})
    known = {field.name: field for field in fields(suite)}
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{name} has no option {unknown[0]!r}: its options are {', '.join(sorted(known)) or 'none'}")
    try:
        return suite(**given)
    except TypeError:
        raise UserError(f"{name} needs its options: give {', '.join(sorted(known))} in evaluation.options") from None


def scores_of(suite: Suite) -> Callable[[Sequence[Judged]], dict[str, float]]:
    """Its scores, called SUITE/SCORE."""
    start = f"{suite.name}/"

    def scores(judged: Sequence[Judged]) -> dict[str, float]:
        found = suite.scores(judged)
        return {name if name.startswith(start) else f"{start}{name}": value for name, value in found.items()}

    return scores


def meant(options: Options, evidence: Sequence[Evidence] = ()) -> dict[str, Any]:
    """What of the suites (of those that rest on this evidence, else of all) enters a key: their settings, files by what
    they hold, and the revisions that are not the first, so that a new suite moves nothing."""
    named = [name for name in _SUITES if not evidence or class_of(name).evidence in evidence]
    revisions = {name: class_of(name).revision for name in named if class_of(name).revision != 1}
    told = {name: {key: _named(value) for key, value in options[name].items()} for name in named if name in options}
    return {"options": told} | ({"revisions": revisions} if revisions else {})


def _named(value: Any) -> Any:
    is_file = isinstance(value, str) and Path(value).expanduser().is_file()
    return weights.named(value) if is_file else value
