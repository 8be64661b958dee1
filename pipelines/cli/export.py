"""`export`: a checkpoint for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.types import UserError
from pipelines.cli import show


def export(target: str, folder: str, overrides: Sequence[str], kind: str, layout: str | None, as_json: bool) -> None:
    """Write the folder and say what is in it."""
    from pipelines.cli.compose import setup
    from pipelines.export import FORMATS, export
    from pipelines.standing import Standing

    if kind not in FORMATS:
        raise UserError(f"--format {kind} is not known: give --format {' or '.join(FORMATS)}")
    if "=" in folder:
        raise UserError(f"{folder!r} is where the folder belongs: write plait export CHECKPOINT DIR, then overrides")
    note = export(Standing(setup(overrides).root), target, Path(folder).expanduser(), layout)
    text = f", with {note['text_tokenizer']}" if note["text_tokenizer"] else ""
    console = show.out(as_json)
    console.print(f"{note['manifest']} is in {folder}, as {note['layout']}{text}.", markup=False, soft_wrap=True)
    if as_json:
        show.emit({"folder": str(Path(folder).expanduser().resolve()), "format": kind, **note})
