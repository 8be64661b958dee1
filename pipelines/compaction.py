"""The standing version of a dataset written anew, as fewer files: same rows, same keys, same digest, same `done` key.

Incremental runs leave small fragments, takedowns leave half-deleted ones. The new version gets the next `done` of the
same materialisation; readers are named by the digest, so nothing goes stale. `plait gc` then removes the old files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra import compact
from infra.ledger import COMPACTED, Claim, snapshot_of
from infra.types import RunError, now_utc
from pipelines.standing import Standing


def rewrite(standing: Standing, done: Mapping[str, Any], small_too: bool = True) -> bool:
    """Write half-deleted fragments anew, and with `small_too` join small ones; whether there was anything to do."""
    folder = standing.ledger.folder(done["dataset"], done["key"])
    before = folder.last("done")
    claim = Claim(folder, f"compaction of {done['dataset']}")
    if not claim.wait(published=before):
        raise RunError(f"{done['dataset']} was made anew meanwhile: run the same command again")
    try:
        number = before + 1
        version = compact.rewrite(standing.store, snapshot_of(done), f"{done['key']}.rewrite.{number}", small_too)
        if version is None:
            return False
        snapshot = standing.store.snapshot(done["dataset"], version)
        if snapshot.digest != done["snapshot"]["digest"]:
            raise RunError(f"{done['dataset']}@{version} has other keys than before it was rewritten: nothing was published, report this")  # fmt: skip  # noqa: E501
        for older in standing.ledger.history(done["dataset"], done["key"]):
            standing.store.untag(snapshot_of(older), f"m.{done['key']}.")
        standing.store.tag(snapshot, f"m.{done['key']}.rewritten.{number}")  # m.KEY.N is a plan's
        new = {"snapshot": snapshot.to_json(), "why": COMPACTED, "number": number, "at": now_utc()}
        told = folder.get(f"told.{before}")
        if told:  # the rows are the same, so MLflow keeps its one run
            folder.put(f"told.{number}", told)
        folder.put(f"done.{number}", dict(done) | new)
        return True
    finally:
        claim.release()


def num_fragments(standing: Standing, done: Mapping[str, Any]) -> int:
    """Fragments of a materialisation's version."""
    return len(standing.store.open(snapshot_of(done)).get_fragments())
