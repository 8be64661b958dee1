"""Writes the sample corpus: raw files for people without data, and the truth about them, which no stage reads.

All comes from one seed. Each file has its own random stream, named after it, so that a longer corpus begins with
the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import sample_films as films
from stages import sample_world as world

if TYPE_CHECKING:
    import numpy as np

_REVISION = 1
"""Bumped when the same arguments give other files."""
SIZES = ((160, 128), (128, 128), (128, 160), (192, 128))
CODECS = {5: "vp9", 11: "vp9", 17: "vp9", 8: "hevc", 14: "hevc"}
ROTATED, VARIABLE, TOO_SMALL, NEAR_COPY = 3, 9, 22, 23
SCENE_TROUBLE = {
    2: "static", 7: "static", 13: "static", 4: "too_fast", 10: "too_fast", 16: "too_fast",
    6: "text_heavy", 12: "text_heavy", 18: "text_heavy", 15: "solid_colour", 20: "solid_colour",
    1: "low_quality", 19: "low_quality", 21: "low_quality",
}  # fmt: skip
"""Video number: what is wrong with one of its scenes."""
STILL_TROUBLE = {
    "text_heavy": 50,
    "solid_colour": 100,
    "too_small": 100,
    "low_quality": 100,
    "exact_duplicate": 100,
    "near_duplicate": 100,
}
"""One still in so many has this."""


def write(
    raw: Path, truth: Path, seed: int = 7, num_videos: int = 24, num_stills: int = 1500, num_texts: int = 60
) -> None:
    """Write the corpus under `raw` and what is true of it to `truth` (JSON); nothing to do if both are there.

    Files are put in place whole and the truth comes last, so an interrupted writing is simply done again.
    """
    sizes = {path.relative_to(raw).as_posix(): path.stat().st_size for path in raw.rglob("*") if path.is_file()}
    told_before = truth.read_bytes() if truth.exists() else None
    if is_whole(told_before, sizes, seed, num_videos, num_stills, num_texts):
        return
    raw.mkdir(parents=True, exist_ok=True)
    for folder in ("videos", "stills", "texts"):
        (raw / folder).mkdir(exist_ok=True)
    told: dict[str, Any] = {}
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(lambda number: _film(raw, seed, number), range(num_videos)):
            told |= part
        spans = [range(start, min(start + 100, num_stills)) for start in range(0, num_stills, 100)]
        for part in pool.map(lambda span: _stills(raw, seed, span), spans):
            told |= part
    told |= _texts(raw, seed, num_texts)
    told |= _broken(raw)
    held_back = {"pairs": world.HELD_PAIRS, "relations": world.HELD_RELATIONS}
    sizes = {name: (raw / name).stat().st_size for name in sorted(told)}
    arguments = _arguments(seed, num_videos, num_stills, num_texts)
    whole = {"arguments": arguments, "held_back": held_back, "files": told, "sizes": sizes}
    truth.parent.mkdir(parents=True, exist_ok=True)
    _put(truth, json.dumps(whole, indent=1, sort_keys=True).encode())


def is_whole(
    truth: bytes | None, sizes: Mapping[str, int], seed: int, num_videos: int, num_stills: int, num_texts: int
) -> bool:
    """Whether a truth tells of a corpus of these arguments, whose files are all there with `sizes` in bytes."""
    try:
        told = json.loads(truth or b"")
        return told["arguments"] == _arguments(seed, num_videos, num_stills, num_texts) and all(
            sizes.get(name) == size for name, size in told["sizes"].items()
        )
    except (ValueError, KeyError):
        return False


def _arguments(seed: int, num_videos: int, num_stills: int, num_texts: int) -> dict[str, int]:
    return {"revision": _REVISION, "seed": seed, "videos": num_videos, "stills": num_stills, "texts": num_texts}


def _put(path: Path, payload: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(payload)
    part.replace(path)


def _stream(seed: int, name: str) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(list(hashlib.sha256(f"{seed} {name}".encode()).digest()))


def _film(raw: Path, seed: int, number: int) -> dict[str, Any]:
    """Write one video; its part of the truth, with that of its copy if it has one."""
    source = 0 if number == NEAR_COPY else number
    rng = _stream(seed, f"film {source}")
    codec = CODECS.get(number, "h264")
    name = f"videos/film_{number:03d}.{films.SUFFIX[codec]}"
    width, height = (80, 64) if number == TOO_SMALL else SIZES[source % len(SIZES)]
    shots: list[films.Shot] = []
    frames = films.acted(rng, shots, width, height, SCENE_TROUBLE.get(number))
    if number == NEAR_COPY:
        frames = ((frame * 0.97 + 4).astype("uint8") for frame in frames)
    # The stored picture of the rotated film lies on its side; the display matrix turns it back.
    turned = number == ROTATED
    payload = films.encoded(frames, codec, 27 if number == NEAR_COPY else None, turned, number == VARIABLE)
    _put(raw / name, films.lying(payload) if turned else payload)
    told = {
        "kind": "video",
        "codec": codec,
        "width": width,
        "height": height,
        "frames": shots[-1].end,
        "cuts": [shot.start for shot in shots[1:]],
        "fades": [shot.start for shot in shots if shot.fades_in],
        "scenes": [asdict(shot) for shot in shots],
        "rotated": turned,
        "variable_fps": number == VARIABLE,
        "trouble": {TOO_SMALL: ["too_small"], NEAR_COPY: ["near_duplicate"]}.get(number, []),
        "copy_of": "videos/film_000.mp4" if number == NEAR_COPY else None,
    }
    if number != 1:
        return {name: told}
    copy = "videos/copy_of_film_001.mp4"
    _put(raw / copy, payload)
    return {name: told, copy: told | {"trouble": ["exact_duplicate"], "copy_of": name}}


def _stills(raw: Path, seed: int, numbers: range) -> dict[str, Any]:
    """Write a run of stills; their part of the truth."""
    return dict(_still(raw, seed, number) for number in numbers)


def _still(raw: Path, seed: int, number: int) -> tuple[str, dict[str, Any]]:
    import cv2

    name = f"stills/still_{number:05d}.png"
    kinds = [kind for shift, (kind, each) in enumerate(STILL_TROUBLE.items()) if number % each == 7 * shift + 6]
    kind = kinds[0] if kinds else None
    source = number - 5 if kind in ("exact_duplicate", "near_duplicate") else number
    rng = _stream(seed, f"still {source}")
    while True:
        scene = world.imagined(rng, "still")
        layout = world.laid_out(rng, scene, 1, 1)
        if layout is not None:
            break
    side = 64 if kind == "too_small" else 128
    picture = world.ground(rng, scene.background, side, side)
    if kind != "solid_colour":
        picture = world.drawn(picture, layout, 0.5)
    picture = films.spoilt(picture, kind, 0, films.words(rng) if kind == "text_heavy" else [])
    if kind == "near_duplicate":
        picture = picture * 0.97 + 3
    image = world.sensed(rng, picture, 14.0 if kind == "low_quality" else 1.5)
    _put(raw / name, cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    told = {
        "kind": "image",
        "width": side,
        "height": side,
        "caption": f"a plain {scene.background} picture" if kind == "solid_colour" else scene.caption(moving=False),
        "background": scene.background,
        "objects": [] if kind == "solid_colour" else films.told_objects(layout),
        "relation": scene.relation,
        "trouble": [kind] if kind else [],
        "copy_of": f"stills/still_{source:05d}.png" if source != number else None,
    }
    return name, told


def _texts(raw: Path, seed: int, count: int) -> dict[str, Any]:
    """Write short texts about the world; their part of the truth."""
    told: dict[str, Any] = {}
    for number in range(count):
        rng = _stream(seed, f"text {number}")
        moving = [world.imagined(rng, str(rng.choice(list(world.MOTIONS)))) for _ in range(4)]
        lines = [f"Here is {scene.caption(moving=bool(rng.random() < 0.5))}." for scene in moving]
        thing = moving[0].groups[0][0]
        corners = {"circle": "no corners", "square": "four corners", "triangle": "three corners", "star": "five points"}
        lines.append(f"A {thing.shape} has {corners[thing.shape]}, and this one is {thing.colour}.")
        name = f"texts/text_{number:03d}.txt"
        _put(raw / name, ("\n".join(lines) + "\n").encode())
        told[name] = {"kind": "text", "lines": len(lines), "trouble": []}
    return told


def _broken(raw: Path) -> dict[str, Any]:
    """One truncated film (its index, at the end, is lost), one empty, and a file that is no medium."""
    films = sorted((raw / "videos").glob("film_*.mp4"))
    whole = films[0].read_bytes() if films else b"\0\0\0\x18ftypmp42" * 20
    _put(raw / "videos/truncated.mp4", whole[: len(whole) * 6 // 10])
    _put(raw / "videos/empty.mp4", b"")
    _put(raw / "videos/Thumbs.db", b"\xd0\xcf\x11\xe0 not a medium\n")
    return {
        "videos/truncated.mp4": {"kind": "video", "trouble": ["truncated"]},
        "videos/empty.mp4": {"kind": "video", "trouble": ["empty"]},
        "videos/Thumbs.db": {"kind": None, "trouble": ["not_a_medium"]},
    }
