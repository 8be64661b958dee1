"""`sample`: pictures, films and texts drawn from a checkpoint."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.types import UserError
from pipelines.cli import show
from pipelines.sample_files import Seen, half_blocks, written

if TYPE_CHECKING:
    from pipelines.sample import Wish

_OVERRIDE = re.compile(r"[~+]*[A-Za-z_][\w./@]*=\S*$")


def prompts_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words are prompts, name=value is an override."""
    overrides = [text for text in arguments if _OVERRIDE.match(text)]
    return [text for text in arguments if text not in overrides], overrides


def sample(target: str, overrides: Sequence[str], wish: Wish, stream: bool, as_json: bool) -> None:
    """Draw, write, say where it lies."""
    from pipelines.sample import NOTE_FILE, sample
    from pipelines.subjects import subject

    _checked(wish)
    console = show.out(as_json)
    with subject(_standing(target, overrides), target) as found, _live(console, stream) as live:
        note = sample(found, wish, _seen(wish.folder, live) if stream else None)
    for one in note["samples"]:
        text = f": {one['text']}" if "text" in one else ""
        console.print(f"{', '.join(one['files'])}{text}", markup=False, soft_wrap=True)
    console.print(f"{len(note['samples'])} samples of {note['checkpoint']} are in {wish.folder}, with {NOTE_FILE}.", markup=False, soft_wrap=True)  # fmt: skip  # noqa: E501
    if as_json:
        show.emit({"folder": str(wish.folder.resolve()), **note})


def _standing(target: str, overrides: Sequence[str]) -> Any:
    """The root, unless the target is a folder."""
    if (Path(target).expanduser() / "config.json").is_file():
        return None
    from pipelines.cli.compose import setup
    from pipelines.standing import Standing

    return Standing(setup(overrides).root)


def _checked(wish: Wish) -> None:
    if sum((wish.image is not None, wish.video is not None, wish.text)) > 1:
        raise UserError("--image, --video and --text are three ways to go on: give one of them")
    if not (wish.prompts or wish.image or wish.video or wish.text):
        raise UserError(
            'there is no prompt: write plait sample CHECKPOINT "a red circle", or add --image, --video or --text'
        )
    if wish.folder.exists() and not wish.folder.is_dir():
        raise UserError(f"--out {wish.folder} is a file: give a folder")


def _live(console: Any, stream: bool) -> Any:
    """A place on the terminal for the picture as it grows, where there is one."""
    if not (stream and sys.stdout.isatty()):
        return nullcontext()
    from rich.live import Live

    return Live(console=console, transient=True, auto_refresh=False)


def _seen(folder: Path, live: Any) -> Seen:
    """Rewrite the files, and show the first picture."""

    def seen(names: Sequence[str], pictures: Any) -> None:
        from stages.frames import to_png

        for name, picture in zip(names, pictures, strict=True):
            written(folder / name, to_png(picture))
        if live is not None:
            live.update(half_blocks(pictures[0]), refresh=True)

    return seen
