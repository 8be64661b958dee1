"""Reading pictures and films: what the curation stages share over PyAV and Pillow. Not a stage.

Frames are counted as decoded, in the order of display. Pictures are uint8 arrays [H, W, 3], upright: the
rotation of the container's display matrix (or the EXIF orientation) has been applied. Errors are BadRow, one
sentence each; an error in the middle of a film ends it and stays readable in `Film.broken`.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from infra.types import BadRow

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image

THREADS = 3
"""Decoder threads: one frame more in flight than there are cores on a small machine, for whoever takes the frames
takes its turn between them. More gain little on frames of training size, and workers share a machine."""

# Demuxers a source may use. Playlists (hls, concat) are left out on purpose: a text file that names other files
# or addresses would make the decoder read them.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,gif,flv,asf,ogg,ivf,h264,hevc,mxf,mjpeg,dv,swf,rm,nut"
MAX_PIXELS = 8192 * 4608
"""Largest picture of a film that is decoded: a damaged header may claim one that fills the memory."""
_READ_ONLY = {"format_whitelist": _FORMATS, "protocol_whitelist": "file,pipe", "max_pixels": str(MAX_PIXELS)}
_COLOUR_SPACES, _UNSPECIFIED = frozenset((0, 1, 2, 4, 5, 6, 7, 9)), 2
"""Those (AVColorSpace) that swscale converts from; it refuses the others, so they are taken for unspecified."""
_DRAFT = {"skip_loop_filter": "all"}


@dataclass
class Film:
    """An open video: its container, its first real video stream, and where decoding broke, if it did."""

    container: InputContainer
    stream: VideoStream
    broken: str | None = field(default=None, init=False)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decoded frames in order of display, up to the end or to the first error (see `broken`).

        What the decoder still holds when a packet is at fault comes too. How much that is depends on the number of
        its threads alone, which is fixed (`THREADS`), so that the number of frames is the same anywhere.
        """
        from av.error import FFmpegError

        for decode in (lambda: self.container.decode(self.stream), lambda: self.stream.codec_context.decode(None)):
            try:
                for frame in decode():
                    if frame.colorspace not in _COLOUR_SPACES:
                        frame.colorspace = _UNSPECIFIED
                    yield frame
            except (FFmpegError, OSError) as error:
                self.broken = self.broken or getattr(error, "strerror", None) or str(error)
            if not self.broken:
                return

    def ticks(self, frame: av.VideoFrame) -> int | None:
        """The frame's time stamp in the stream's time base, None where it has none.

        AVI stores no times of display: its frames come in order of display, so the time of decoding is the one
        that grows evenly.
        """
        by_decoding = self.container.format.name == "avi" and frame.dts is not None
        return frame.dts if by_decoding else frame.pts

    def seconds(self, frame: av.VideoFrame) -> float | None:
        """The frame's time stamp in seconds, None where it has none."""
        ticks = self.ticks(frame)
        return None if ticks is None or frame.time_base is None else float(ticks * frame.time_base)


@contextmanager
def opened(
    source: Path | BinaryIO | bytes, *, draft: bool = False, threads: int = THREADS
) -> Generator[Film, None, None]:
    """Open a video for decoding; BadRow where nothing can be decoded from it.

    `draft` skips the in-loop deblocking filter: for counting frames and times, not for pictures.
    """
    import av
    from av.error import FFmpegError

    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if isinstance(source, Path) and source.stat().st_size == 0:
        raise BadRow("The file is empty (0 bytes): copy it again from where it came.")
    try:
        # Titles may be in any encoding, and nobody here reads them.
        container: Any = av.open(
            str(source) if isinstance(source, Path) else source, options=dict(_READ_ONLY), metadata_errors="replace"
        )
    except (FFmpegError, OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise BadRow(
            f"It cannot be opened as a video ({said}): the file is cut short, damaged or of another kind."
        ) from error
    with container:
        stream = _first_picture_stream(container)
        stream.thread_type = "AUTO"
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise BadRow(f"Its pictures are said to be {width} x {height}: at most {MAX_PIXELS} pixels are decoded.")
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)} | (_DRAFT if draft else {})
        yield Film(container, stream)


def _first_picture_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is not cover art and has a decoder."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if getattr(stream, "codec_context", None) is None:
            raise BadRow("Its video codec is not one that this build of FFmpeg decodes: convert the file to H.264.")
        return stream
    if container.streams.audio:
        raise BadRow("It holds sound but no video stream.")
    raise BadRow("It holds no video stream.")


def rate(fps: float) -> Fraction:
    """Frames a second as the fraction that encoders and detectors ask for; above 0."""
    return max(Fraction(fps).limit_denominator(100_000), Fraction(1, 100_000))


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width over height of one stored pixel; 1 where it is not stated or absurd (outside 1/4 to 4)."""
    sar = stream.sample_aspect_ratio
    return Fraction(sar) if sar and Fraction(1, 4) <= sar <= 4 else Fraction(1)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that make the stored picture upright: 0 to 3."""
    return round(frame.rotation / 90) % 4


def picture(frame: av.VideoFrame, width: int, height: int, *, order: str = "rgb24") -> np.ndarray:
    """The frame as uint8 [height, width, 3], upright. `width` and `height` are those of the upright picture."""
    import numpy as np
    from av.video.reformatter import Interpolation

    turns = quarter_turns(frame)
    stored = (height, width) if turns % 2 else (width, height)
    shaped = frame.reformat(width=stored[0], height=stored[1], format=order, interpolation=Interpolation.AREA)
    array = shaped.to_ndarray()
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height of the frame after rotation, in stored pixels."""
    return (frame.height, frame.width) if quarter_turns(frame) % 2 else (frame.width, frame.height)


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height shrunk to a short side of at most `short_side`, never enlarged, at least 1."""
    scale = min(1.0, short_side / max(1, min(width, height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def loaded(source: Path | bytes) -> Image.Image:
    """A still, fully decoded, with its EXIF orientation applied (its `format` kept); BadRow where it is broken."""
    from PIL import Image, ImageOps

    if isinstance(source, Path) and source.stat().st_size == 0:
        raise BadRow("The file is empty (0 bytes): copy it again from where it came.")
    try:
        # From memory, not from the file: a damaged length there makes Pillow ask for that much memory at once.
        with Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())) as image:
            image.load()
            kind = image.format
            upright = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise BadRow(f"The image is too large to be decoded safely ({error}).") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.UnidentifiedImageError) as error:
        raise BadRow(
            f"It cannot be decoded as an image ({_plain(error)}): the file is cut short or damaged."
        ) from error
    upright.format = kind
    return upright


def _plain(error: BaseException) -> str:
    """What the error says, without paths or addresses in memory: the same file gives the same reason anywhere."""
    said = str(error)
    return "unknown format" if said.startswith("cannot identify") else said.rstrip(".")


def opaque(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB: 16-bit grey scaled down, transparency laid on white."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        deep = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" or deep.max(initial=0.0) > 1.0 else 1.0
        return Image.fromarray((deep.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def sampled(media: bytes, source_kind: str, rate: float, short_side: int) -> Iterator[tuple[float, np.ndarray]]:
    """Pictures of a clip on a grid of time: (seconds, uint8 RGB [H, W, 3]), shrunk to `short_side`.

    The first frame at or after each multiple of 1/rate seconds, so a slow clip gives each of its frames once.
    An image gives one picture at 0 s.
    """
    import numpy as np
    from PIL import Image

    if source_kind == "image":
        still = opaque(loaded(media))
        size = fitted(*still.size, short_side)
        if size != still.size:
            still = still.resize(size, Image.Resampling.BOX)
        yield 0.0, np.asarray(still)
        return
    due, start, seen = 0.0, None, 0
    with opened(media) as film:
        for frame in film.frames():
            now = film.seconds(frame)
            start = now if start is None else start
            time = now - start if now is not None and start is not None else seen / rate
            seen += 1
            if time + 1e-6 < due:
                continue
            due = (int(time * rate + 1e-6) + 1) / rate
            yield time, picture(frame, *fitted(*upright_size(frame), short_side))
    if not seen:
        raise BadRow("No frame of the clip can be decoded.")


def num_caption_frames(duration_s: float) -> int:
    """How many frames of a clip a captioner looks at: Emu3's 12 of clips under 20 s, its 8 of longer ones."""
    return 12 if duration_s < 20 else 8


def evenly(media: bytes, source_kind: str, num_frames: int, count: int, short_side: int) -> list[np.ndarray]:
    """`count` pictures spread over a clip of `num_frames`: the middles of equal parts, shrunk to `short_side`."""
    if source_kind == "image":
        return [shot for _, shot in sampled(media, source_kind, 1.0, short_side)]
    wanted = {int((part + 0.5) * num_frames / count) for part in range(count)}
    with opened(media) as film:
        chosen = [
            picture(frame, *fitted(*upright_size(frame), short_side))
            for index, frame in enumerate(islice(film.frames(), max(wanted) + 1))
            if index in wanted
        ]
    if not chosen:
        raise BadRow("No frame of the clip can be decoded.")
    return chosen


def described(stream: VideoStream) -> dict[str, Any]:
    """Codec and pixel aspect as the header states them."""
    sar = pixel_aspect(stream)
    return {"codec": stream.codec_context.codec.canonical_name, "sar": f"{sar.numerator}:{sar.denominator}"}
