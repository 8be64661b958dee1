"""`plait sample`: what is drawn after prompts, pictures and films, and the files that it is written to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.types import BadRow, UserError
from pipelines.sample_files import Seen, write_film, write_sheet, written
from pipelines.subjects import Subject, reader
from stages.base import Row

if TYPE_CHECKING:
    import torch

    from models.generate.choosing import Sampling
    from models.generate.pictures import Asked
    from models.layout import Part, Picture

NOTE_FILE, SHEET_FILE = "samples.json", "sheet.png"
_TOGETHER = 16
"""Samples of one batch; none depends on the others."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for, as it comes from the command line."""

    prompts: Sequence[str]
    number: int = 1
    """Samples of each prompt; the i-th has the seed `seed` + i."""
    folder: Path
    negative: str = ""
    how: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of `Sampling`."""
    seed: int = 0
    size: int | None = None
    """Pixels of a side; none: as the packs had most."""
    frames: int | None = None
    """Frames of a film, of pixels."""
    image: Path | None = None
    video: Path | None = None
    text: bool = False
    """Go on with the prompts as documents, with a picture where the model begins one."""
    max_tokens: int = 128
    fps: float = 8.0
    """Of the files of films."""


@dataclass(frozen=True)
class _One:
    """One sample to be drawn."""

    number: int
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.number:03d}-seed-{self.seed}"


def sample(found: Subject, wish: Wish, seen: Seen | None = None) -> dict[str, Any]:
    """Draw all, write the files, a sheet and samples.json; what that says. `seen` gets what there is of each batch,
    with the names of its files, as it is drawn."""
    from models.generate.choosing import Sampling

    try:
        how = Sampling(**wish.how)
    except ValueError as error:
        raise UserError(str(error)) from error
    turns = [(prompt, wish.seed + place) for prompt in wish.prompts or [""] for place in range(wish.number)]
    ones = [_One(number, *turn) for number, turn in enumerate(turns)]
    wish.folder.mkdir(parents=True, exist_ok=True)
    way = _way(found, wish)
    samples: list[dict[str, Any]] = []
    sheet: list[NDArray[np.uint8]] = []
    for start in range(0, len(ones), _TOGETHER):
        some = ones[start : start + _TOGETHER]
        for one, (files, text, frames) in zip(some, way(found, wish, how, some, seen), strict=True):
            samples.append(
                {"prompt": one.prompt, "seed": one.seed, "files": files} | ({"text": text} if text is not None else {})
            )
            sheet += list(frames)
    note = {**found.note, "negative": wish.negative, "settings": asdict(how), "samples": samples}
    note |= {name: str(path) for name, path in (("image", wish.image), ("video", wish.video)) if path}
    if sheet:
        note["sheet"] = write_sheet(wish.folder / SHEET_FILE, sheet)
    written(wish.folder / NOTE_FILE, (json.dumps(note, indent=1) + "\n").encode())
    return note


_Drawn = tuple[list[str], str | None, Sequence[NDArray[np.uint8]]]
"""Files, text, and pictures for the sheet."""


def _way(found: Subject, wish: Wish) -> Callable[..., Iterator[_Drawn]]:
    """What is drawn; of a model that knows films alone films, unless something else is wished."""
    if wish.image:
        return _texts
    if wish.text:
        return _documents
    films_alone = found.still is None and found.film is not None and wish.size is None
    return _films if wish.video or (wish.frames or (2 if films_alone else 1)) > 1 else _stills


def _stills(found: Subject, wish: Wish, how: Sampling, ones: Sequence[_One], seen: Seen | None) -> Iterator[_Drawn]:
    from models.generate.choosing import Chance
    from models.generate.pictures import drawings, painted

    asked = _still(found, wish)
    words: list[list[Part]] = [[found.text.encode(one.prompt)] for one in ones]
    drawn = None
    for drawn in drawings(found.model, found.text, words, how, Chance([one.seed for one in ones]), asked):
        if seen:
            seen([f"{one.name}.png" for one in ones], painted(found.tokenizer, drawn, asked.grids)[:, 0])
    assert drawn is not None
    for one, picture in zip(ones, painted(found.tokenizer, drawn, asked.grids)[:, 0], strict=True):
        yield [_png(wish.folder, one.name, picture)], None, [picture]


def _films(found: Subject, wish: Wish, how: Sampling, ones: Sequence[_One], seen: Seen | None) -> Iterator[_Drawn]:
    """Films after prompts, or the given one continued; longer than the model knows them in a window that slides."""
    from models.generate.choosing import Chance
    from models.generate.films import film_frames, film_grids
    from models.generate.pictures import painted
    from models.layout import finest

    window = _film(found, wish)
    time = found.tokenizer.stride[0]
    given = _given_frames(found, wish, window, len(ones)) if wish.video else None
    there = 0 if given is None else given.shape[1]
    frames = -(-wish.frames // time) if wish.frames else there + finest(window.grids)[0]
    if frames <= there:
        raise UserError(
            f"--frames {wish.frames} is no more than the {there * time} that {wish.video} gives: ask for more"
        )
    words: list[list[Part]] = [[found.text.encode(one.prompt)] for one in ones]
    chance, film = Chance([one.seed for one in ones]), None
    for film in film_frames(found.model, found.text, words, how, chance, window, frames, given):
        if seen:
            shown = painted(found.tokenizer, film.flatten(1, 2), film_grids(window.grids, film.shape[1]))
            seen([f"{one.name}.png" for one in ones], shown[:, -1])
    assert film is not None
    for one, shown in zip(
        ones, painted(found.tokenizer, film.flatten(1, 2), film_grids(window.grids, frames)), strict=True
    ):
        yield write_film(wish.folder / one.name, shown, wish.fps), None, shown[:: max(1, len(shown) // 8)]


def _texts(found: Subject, wish: Wish, how: Sampling, ones: Sequence[_One], seen: Seen | None) -> Iterator[_Drawn]:
    """The text after a picture, and after a question where there is one."""
    from models.generate.texts import texts

    assert wish.image is not None
    picture = _read(found, wish, wish.image, "image", None)
    parts: list[list[Part]] = [[picture, *([found.text.encode(one.prompt)] if one.prompt else [])] for one in ones]
    said = texts(found.model, found.text, parts, how, [one.seed for one in ones], wish.max_tokens)
    for one, text in zip(ones, said, strict=True):
        yield [_txt(wish.folder, one.name, text)], text, []


def _documents(found: Subject, wish: Wish, how: Sampling, ones: Sequence[_One], seen: Seen | None) -> Iterator[_Drawn]:
    """Documents that go on, with a picture where the model begins one."""
    from models.generate.texts import Going, continued

    draws = found.still is not None or found.film is not None or wish.size is not None
    asked = [_still(found, wish)] if draws else []
    going = Going(max_tokens=wish.max_tokens, pictures=asked, how=replace(how, guidance=1.0), how_pictures=how)
    words: list[list[Part]] = [[found.text.encode(one.prompt)] if one.prompt else [] for one in ones]
    for one, parts in zip(ones, continued(found.model, found.text, words, going, [o.seed for o in ones]), strict=True):
        files, text, shown = [], "", []
        for part in parts:
            if isinstance(part, list):
                text += found.text.decode(part)
                continue
            shown.append(_pixels(found, part, asked[0]))
            files.append(_png(wish.folder, f"{one.name}-{len(shown)}", shown[-1]))
            text += f"[{files[-1]}]"
        yield [_txt(wish.folder, one.name, text), *files], text, shown


def _pixels(found: Subject, picture: Picture, asked: Asked) -> NDArray[np.uint8]:
    import torch

    from models.generate.pictures import painted

    said = picture.ids if picture.ids is not None else picture.vectors
    assert said is not None
    return painted(found.tokenizer, torch.from_numpy(said)[None], asked.grids)[0, 0]


def _still(found: Subject, wish: Wish) -> Asked:
    """What pictures are drawn; of a model that knows films alone single frames."""
    from models.generate.pictures import Asked
    from models.layout import finest

    if wish.size is None:
        if found.still is None and found.film is not None:
            (_, rows, columns), (_, side) = finest(found.film.grids), found.tokenizer.stride
            grids = found.tokenizer.grids(found.tokenizer.stride[0], rows * side, columns * side)
            return Asked(grids=grids, negative=wish.negative)
        if found.still is None:
            raise UserError("nobody knows which pictures this checkpoint was trained on: add --size PIXELS")
        return replace(found.still, negative=wish.negative)
    return Asked(grids=_grids(found, 1, wish.size), negative=wish.negative)


def _film(found: Subject, wish: Wish) -> Asked:
    """The films that the model knows: the window."""
    from models.layout import finest

    if found.film is None:
        raise UserError("this checkpoint was trained on no films of several frames: leave out --frames and --video")
    if wish.size is None:
        return replace(found.film, negative=wish.negative)
    frames = finest(found.film.grids)[0] * found.tokenizer.stride[0]
    return replace(found.film, negative=wish.negative, grids=_grids(found, frames, wish.size))


def _grids(found: Subject, frames: int, size: int) -> tuple[tuple[int, int, int], ...]:
    try:
        return found.tokenizer.grids(max(frames, found.tokenizer.stride[0]), size, size)
    except ValueError as error:
        raise UserError(f"--size {size} cannot be: {error}") from error


@dataclass(frozen=True)
class _Kit:
    """What the stage that reads pictures is set up with."""

    folder: Path

    def checkpoint(self, dataset: str) -> Path:
        return self.folder

    def rows(self, dataset: str, columns: Sequence[str]) -> Any:
        raise NotImplementedError(dataset)


def _read(found: Subject, wish: Wish, path: Path, kind: str, frames: int | None) -> Picture:
    """A file as the model reads it: seen as the clips were that it was trained on."""
    from stages.pictures import picture_of

    if not path.is_file():
        raise UserError(f"{path} is no file: give a picture or a film")
    row: Row = {"media": path.read_bytes(), "source_kind": kind, "num_frames": 1, "fps": None, "held_out": False}
    stage = reader(found, wish.size, frames)
    try:
        row |= _length(row["media"]) if kind == "video" else {}
    except BadRow as bad:
        raise UserError(f"{path} cannot be read ({str(bad).rstrip('.')}): give another file") from bad
    kit: Any = _Kit(found.vision_folder)
    (made,) = stage.process([row], stage.setup(kit))
    if not isinstance(made, list):
        raise UserError(f"{path} cannot be read ({str(made).rstrip('.')}): give another file")
    return picture_of(made[0], features=found.model.form.layout.features and kind == "image")


def _length(film_bytes: bytes) -> dict[str, Any]:
    """Frames and frames a second of a film, counted."""
    from stages import media

    with media.opened(film_bytes) as film:
        count = sum(1 for _ in film.frames())
        stream = film.stream
        rate = stream.average_rate or stream.guessed_rate
    return {"num_frames": count, "fps": float(rate) if rate else 24.0}


def _given_frames(found: Subject, wish: Wish, window: Asked, count: int) -> torch.Tensor:
    """(B, F, L [, C]) of the film that is continued, the same for every sample."""
    import torch

    from models.layout import finest

    assert wish.video is not None
    frames = finest(window.grids)[0] * found.tokenizer.stride[0]
    picture = _read(found, wish, wish.video, "video", frames)
    if finest(picture.grids)[1:] != finest(window.grids)[1:]:
        h, w = finest(picture.grids)[1:]
        raise UserError(
            f"{wish.video} has {h}x{w} places, the films of this checkpoint {finest(window.grids)[1:]}: give --size"
        )
    said = torch.from_numpy(picture.ids if picture.ids is not None else np.asarray(picture.vectors, np.float32))
    one = said.unflatten(0, (finest(picture.grids)[0], -1))
    return one.expand(count, *one.shape)


def _png(folder: Path, name: str, picture: NDArray[np.uint8]) -> str:
    from stages.frames import to_png

    return written(folder / f"{name}.png", to_png(picture))


def _txt(folder: Path, name: str, text: str) -> str:
    return written(folder / f"{name}.txt", (text + "\n").encode())
