"""`compare`: people choose between the answers of checkpoints, blind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.types import UserError
from pipelines.cli import show
from pipelines.cli.going import parted


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The flags."""

    page: str | None = None
    votes: Sequence[str] = ()
    suite: str | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if bool(self.page) == bool(self.votes):
            raise UserError("plait compare writes a page or reads votes: give A B --out pairs.html, or --votes FILE")


def compare(arguments: Sequence[str], wish: Wish, as_json: bool) -> None:
    """The verb."""
    targets, overrides = parted(arguments)
    if not wish.votes:
        _write_page(targets, overrides, wish, as_json)
    elif arguments:
        raise UserError(f"votes tell their checkpoints themselves: leave out {arguments[0]!r}")
    else:
        _show_votes(wish.votes, as_json)


def _write_page(targets: Sequence[str], overrides: Sequence[str], wish: Wish, as_json: bool) -> None:
    from dashboards.pairs import Sheet, page
    from infra.store import Store
    from pipelines.cli.compose import setup
    from pipelines.compare import paired
    from pipelines.sample_files import written

    if len(targets) < 2:
        raise UserError("two checkpoints make a pair: write plait compare A B --out pairs.html")
    path = Path(wish.page or "").expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {wish.page} is no file in a folder that exists: give one such as pairs.html")
    made = setup(["pipeline=evaluate", *overrides])
    found = paired(Store(made.root), targets, suite=wish.suite, seed=wish.seed, limit=wish.limit)
    sheets: list[Sheet] = []
    for pair in found.pairs:
        left, right = (found.media[name, pair.question, pair.index] for name in pair.sides)
        sheets.append(Sheet(key=pair.key, prompt=found.prompts[pair.question], left=left, right=right))
    written(path, page(sheets, found.sealed, found.name).encode())
    said = f"{len(sheets)} pairs are in {path}: open it, vote, save, then plait compare --votes FILE."
    show.out(as_json).print(said, markup=False, soft_wrap=True)
    if as_json:
        show.emit({"ok": True, "page": str(path.resolve()), "pairs": len(sheets)})


def _show_votes(files: Sequence[str], as_json: bool) -> None:
    from stages.evaluate.preference import agreement, ranked, votes_of
    from stages.evaluate.statistics import LEAST_QUESTIONS

    votes, labels = votes_of({file: _bytes(file) for file in files})
    found, agree = ranked(votes), agreement(votes)
    questions = len({vote.question for vote in votes})
    console = show.out(as_json)
    lines = [
        [labels.get(one.checkpoint, one.checkpoint[:12]), f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}"]
        + [str(one.wins), str(one.ties), str(one.losses)]
        for one in found
    ]
    raters = len({vote.rater for vote in votes})
    title = f"{len(votes)} votes of {raters} on {questions} questions"
    console.print(show.table(title, ("checkpoint", "log strength", "95 %", "wins", "ties", "losses"), lines))
    if questions < LEAST_QUESTIONS:
        console.print(f"{questions} questions tell too little for intervals: vote on {LEAST_QUESTIONS} or more.")
    sides = [vote.side for vote in votes if vote.side != "tie"]
    left = sides.count("left") / len(sides) if sides else math.nan
    console.print(f"Left side   {left:.2f} of the choices" if sides else "All votes are ties.", markup=False)
    if agree:
        console.print(f"Agreement   {agree[0]} {agree[1]:.3f} on {agree[2]} pairs", markup=False)
    if as_json:
        told = [asdict(one) | {"label": labels.get(one.checkpoint)} for one in found]
        kappa = {"name": agree[0], "value": _finite(agree[1]), "pairs": agree[2]} if agree else None
        show.emit({"ok": True, "strengths": told, "agreement": kappa, "left": _finite(left), "votes": len(votes)})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bytes(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"--votes {file} cannot be read: give the JSON that the page saves") from error
