"""`doctor`: whether what a run needs is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipelines.cli import show


def doctor(overrides: Sequence[str], storage: bool, as_json: bool) -> None:
    """Examine the surroundings, or with `storage` all that plait needs of the store; exit code 1 where it is wrong."""
    from infra import conformance
    from pipelines import doctor as examiner
    from pipelines.cli.compose import setup, source_of
    from pipelines.cli.world import tracker_of

    made = setup(overrides)
    show.keep_stdout()
    if storage:
        findings = conformance.examine(made.root)
    else:
        source = source_of(made) if made.config.source else None
        findings = examiner.examine(made.root, source, lambda: tracker_of(made), made.config.cluster.address)
    lines = [[f.what, "ok" if f.ok else "WRONG", f.said] for f in findings]
    show.out(as_json).print(show.table("Doctor", ("what", "", "found"), lines, left=3))
    if as_json:
        show.emit({"ok": all(f.ok for f in findings), "checks": [dataclasses.asdict(f) for f in findings]})
    if not all(f.ok for f in findings):
        raise SystemExit(1)
