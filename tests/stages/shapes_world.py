"""Plain shapes on plain grounds, as stills and mp4 clips with a caption each: what the model room is tested on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter

from tests.stages.fake_job import key_of, table_of

COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 70, 210),
    "yellow": (230, 210, 50),
    "purple": (140, 50, 170),
    "orange": (240, 140, 30),
}
GROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (15, 15, 15), "beige": (225, 205, 170)}
SHAPES = ("circle", "square", "triangle", "star")
SIDE = 128
CLIPS = pa.schema(
    [
        ("source_kind", pa.string()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("held_out", pa.bool_()),
        ("media", pa.large_binary()),
    ]
)
CAPTIONS = pa.schema([("text", pa.string()), ("held_out", pa.bool_())])


def draw(things: Sequence[tuple[str, str, float, float, float]], ground: str) -> np.ndarray:
    """(SIDE, SIDE, 3) picture of (shape, colour, x, y, radius), each a fraction of the side."""
    big = SIDE * 2
    image = Image.new("RGB", (big, big), GROUNDS[ground])
    pen = ImageDraw.Draw(image)
    for shape, colour, fx, fy, fr in things:
        x, y, r, fill = fx * big, fy * big, fr * big, COLOURS[colour]
        if shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill)
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill)
        else:
            points, step = (3, 1) if shape == "triangle" else (5, 2)
            angles = [2 * np.pi * step * i / points - np.pi / 2 for i in range(points)]
            pen.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for a in angles], fill)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)).resize((SIDE, SIDE), Image.Resampling.BOX))


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


def scene(rng: np.random.Generator) -> tuple[list[tuple[str, str, float, float, float]], str, str]:
    """One or two things, the ground and the caption."""
    ground = str(rng.choice(list(GROUNDS)))
    words, things = [], []
    for place in range(int(rng.integers(1, 3))):
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
        large = bool(rng.integers(2))
        x = rng.uniform(0.22, 0.35) + 0.43 * place
        things.append((shape, colour, x, rng.uniform(0.3, 0.7), 0.19 if large else 0.11))
        words.append(f"a {'large' if large else 'small'} {colour} {shape}")
    return things, ground, f"{' left of '.join(words)} on a {ground} background"


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "png")
    return out.getvalue()


def mp4(pictures: Sequence[np.ndarray]) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=Fraction(24), options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        film.mux(stream.encode())
    return out.getvalue()


def world(stills: int, films: int, seed: int = 0, held_out_every: int = 10) -> tuple[pa.Table, pa.Table]:
    """Tables `clips` and `captions` (parents: the clip)."""
    rng = np.random.default_rng(seed)
    clips, captions = [], []
    for i in range(stills + films):
        things, ground, text = scene(rng)
        base = {"key": key_of("clips", seed, i), "held_out": i % held_out_every == 0}
        if i < stills:
            media, kind, frames = png(noisy(draw(things, ground), rng)), "image", 1
        else:
            moved = [[(s, c, x + 0.004 * t, y, r) for s, c, x, y, r in things] for t in range(24)]
            media, kind, frames = mp4([noisy(draw(at, ground), rng) for at in moved]), "video", 24
            text += ", moving right"
        clips.append(base | {"media": media, "source_kind": kind, "num_frames": frames, "fps": 24.0 * (frames > 1)})
        captions.append({"text": text, "held_out": base["held_out"], "parents": [base["key"]]})
    return table_of(clips, CLIPS, "clips"), table_of(captions, CAPTIONS, "captions")
