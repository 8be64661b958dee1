"""Answers of checkpoints that people are to choose between: found in a root, paired blind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.ledger import Ledger, snapshot_of
from infra.store import Store
from infra.types import UserError
from pipelines.evaluate import is_called, scored
from stages.evaluate.checkpoints import Listed
from stages.evaluate.generations import Generations
from stages.evaluate.preference import Pair, pairs, sealed
from stages.evaluate.rewriting import asked_for

_LAID_OUT = ("files_sha256", "question", "index", "suite", "asks")


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What a page is made of."""

    pairs: Sequence[Pair]
    prompts: Mapping[str, str]
    """The suites' own, by question."""
    media: Mapping[tuple[str, str, int], bytes]
    """By checkpoint, question and number."""
    sealed: str
    name: str
    """Of all this, telling nothing of it."""


def paired(store: Store, targets: Sequence[str], *, suite: str | None, seed: int, limit: int | None) -> Paired:
    """Pairs of the pictures and films of these checkpoints, as `generations` has them."""
    labels = {one.files_sha256: one.label for one in _checkpoints(store, targets)}
    dones = Ledger(store.bucket).dones(Generations.writes)
    snapshot = snapshot_of(dones[-1]) if dones else None
    places: dict[tuple[str, str, int], int] = {}
    laid_out = store.scan(snapshot, _LAID_OUT).to_pylist() if snapshot else []
    for position, row in enumerate(laid_out):
        if row["files_sha256"] in labels and row["asks"] != "texts" and suite in (None, row["suite"]):
            places[row["files_sha256"], row["question"], row["index"]] = position
    answers = {name: [(question, index) for of, question, index in places if of == name] for name in labels}
    found = pairs(answers, seed, limit)
    if not found or snapshot is None:
        suites = ", ".join(sorted({row["suite"] for row in laid_out if row["asks"] != "texts"})) or "none"
        raise UserError(f"no picture or film of {suite or 'any suite'} was answered by two of {', '.join(targets)}: run `plait evaluate` for both; suites with pictures are {suites}")  # fmt: skip  # noqa: E501
    wanted = sorted({(name, pair.question, pair.index) for pair in found for name in pair.sides})
    taken = store.take(snapshot, [places[one] for one in wanted], ("prompt", "about", "media")).to_pylist()
    return Paired(
        pairs=found,
        prompts={one[1]: _prompt(row) for one, row in zip(wanted, taken, strict=True)},
        media={one: row["media"] for one, row in zip(wanted, taken, strict=True)},
        sealed=sealed(found, labels),
        name=hashlib.sha256("".join(pair.key for pair in found).encode()).hexdigest()[:16],
    )


def _prompt(row: Mapping[str, Any]) -> str:
    return asked_for(row["prompt"], json.loads(row["about"]))


def _checkpoints(store: Store, targets: Sequence[str]) -> list[Listed]:
    known = scored(store)
    found: list[Listed] = []
    for target in targets:
        meant = [one for one in known if is_called(one.checkpoint, one.training, one.step, target)]
        if len(meant) != 1:
            some = ", ".join(one.short for one in (meant or known)[-4:])
            what = f"means {len(meant)} checkpoints" if meant else "is no checkpoint that was evaluated"
            raise UserError(f"{target!r} {what}: give one of {some or '`plait evaluate`, which has not run yet'}")
        found += meant
    if len({one.files_sha256 for one in found}) < max(2, len(targets)):
        raise UserError(f"{' '.join(targets)!r} is one checkpoint, or one twice: give two or more different ones")
    return found
