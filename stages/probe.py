"""What a video is, by decoding all of it: headers lie. Not a stage."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from infra.types import BadRow, Row
from stages import media

_REGULAR = 0.25
"""A gap between frames that differs from the median by more than this share makes the frame rate variable.
Millisecond time stamps (WebM) of a regular film differ by at most 1 ms, 6 % at 60 frames a second."""
_LOST = 0.02
"""Missing frames above this share (and above 1) are worth a warning where the header counts frames; durations
only (WebM, MPEG) are trusted to 10 %: they cover the sound too."""


def probe(path: Path) -> Row:
    """What a video is, by decoding all of it; BadRow where nothing can be decoded."""
    with media.opened(path, draft=True) as film:
        stream, first, times, count = film.stream, None, [], 0
        for frame in film.frames():
            first = first or (media.upright_size(frame), media.quarter_turns(frame))
            now = film.seconds(frame)
            times += [now] if now is not None else []
            count += 1
        if first is None:
            why = film.broken or "the stream is empty"
            raise BadRow(f"It opens, but no frame can be decoded ({why}): the file is cut short or damaged.")
        (width, height), turns = first
        timing = _timing(times, count, float(stream.average_rate or 0) or float(stream.guessed_rate or 0) or 1.0)
        claimed, exact = _claimed(film, timing["fps"])
        return {
            "container": film.container.format.name,
            **media.described(stream),
            "num_frames": count,
            "width": width,
            "height": height,
            "rotation": turns * 90,
            **timing,
            "has_audio": bool(film.container.streams.audio),
            "warning": _warning(film.broken, count, claimed, exact),
        }


def _timing(times: list[float], count: int, stated_rate: float) -> Row:
    """Rate, duration and regularity from the time stamps (s), which may step back; from the header without them."""
    span = max(times) - min(times) if times else 0.0
    if len(times) < 2 or span <= 0:
        return {
            "fps": stated_rate,
            "duration_s": count / stated_rate,
            "first_pts_s": times[0] if times else 0.0,
            "variable_fps": False,
        }
    gaps = sorted(after - before for before, after in pairwise(times))
    usual = gaps[len(gaps) // 2]
    odd = max(abs(gaps[0] - usual), abs(gaps[-1] - usual))
    return {
        "fps": (len(times) - 1) / span,
        "duration_s": span + (usual if usual > 0 else span / (len(times) - 1)),
        "first_pts_s": times[0],
        "variable_fps": odd > _REGULAR * abs(usual),
    }


def _claimed(film: media.Film, fps: float) -> tuple[int, bool]:
    """How many frames the header promises (0: it does not say), and whether it counted them."""
    stream = film.stream
    if stream.frames:
        return stream.frames, True
    if stream.duration and stream.time_base:
        return round(float(stream.duration * stream.time_base) * fps), False
    return round((film.container.duration or 0) / 1e6 * fps), False


def _warning(broken: str | None, count: int, claimed: int, exact: bool) -> str | None:
    if broken is not None:
        tail = f" of {claimed}" if claimed > count else ""
        return f"decoding stops after {count}{tail} frames ({broken}): the rest of the file is lost"
    if claimed - count > max(1.0, claimed * (_LOST if exact else 0.1)):
        return f"the header claims {claimed} frames, {count} could be decoded"
    return None
