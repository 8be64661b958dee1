"""Pre-extract the visual codes of every clip, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.types import UserError
from models.tokenizers.codes import packed
from stages import frames
from stages.base import BadRow, Edge, Kit, Outcome, Row, RowStage, above_zero

if TYPE_CHECKING:
    import torch

    from models.tokenizers.interface import Encoded, VisionTokenizer

BATCH_PIXELS = {"cpu": 2**12, "cuda": 2**20}
"""Pixels that are encoded at once, at least one clip. Kernels round differently for another batch size, and a code at
a tie would depend on it: so the batch of a shape has always the same size, filled with copies of its last clip (and
that is why it is here, in the code, and no setting). A CPU gains nothing from more than one clip, and what fills a
batch is waste."""
_DECODERS = 2


@dataclass(frozen=True)
class _Tools:
    tokenizer: VisionTokenizer
    digest: str
    device: str
    reads: Callable[[torch.Tensor], torch.Tensor] | None
    """Pixels (N, 3, H, W) to features (N, F, h, w)."""


@dataclass(frozen=True, kw_only=True)
class Indices(RowStage):
    """Encodes the frames of each clip with the trained tokenizer.

    grids          (t, h, w) of the codes: one grid, or, of multi-scale tokenizers, one per scale, frame after frame
    ids            the codes, grid after grid in raster order, as the smallest integers that hold them
                   (models/tokenizers/codes.py); null of a tokenizer with latents
    input_ids      what a model is shown instead, where self-correction draws it (NextFlow); else null
    latents        float16 (t, h, w, C) of a tokenizer without codes; else null
    features       float16 (t, h, w, F) of an understanding encoder, and their grid; null where none is asked for
    size           which of the sizes it is; a clip has one row for each
    num_frames, fps, height, width   of what was encoded (fps is null of a still)
    tokenizer      digest of its weights

    Clips of one shape are encoded together, without padding, while the next ones are decoded. What comes out for a
    clip depends on that clip alone: batches have a fixed size (`BATCH_PIXELS`).
    """

    writes: ClassVar[str] = "indices"
    revision: ClassVar[int] = 3
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "fps", "held_out")),
        Edge("tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("grids", pa.list_(pa.list_(pa.int32(), 3))),
            pa.field("ids", pa.binary(), nullable=True),
            pa.field("input_ids", pa.binary(), nullable=True),
            pa.field("latents", pa.large_binary(), nullable=True),
            pa.field("features", pa.large_binary(), nullable=True),
            pa.field("feature_grid", pa.list_(pa.int32(), 3), nullable=True),
            ("size", pa.int32()),
            ("codebook_size", pa.int32()),
            ("tokenizer", pa.string()),
            ("num_frames", pa.int32()),
            pa.field("fps", pa.float64(), nullable=True),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("held_out", pa.bool_()),
        ]
    )

    size: int
    """Pixels: side of the square, or root of the budget of pixels."""
    more_sizes: tuple[int, ...] = ()
    """Further sizes at which every clip is encoded, for phases of training (NextFlow: 256, 512, 1024)."""
    features: str | None = None
    """What an understanding encoder makes of the same frames, a vector for each code's place (Janus): SigLIP or
    SigLIP2, a folder or an id of the hub; `classical`: mean colours and gradients; unset: nothing."""
    fit: Literal["square", "area"] = "square"
    """square: the centre of the picture. area: all of it, in its own shape."""
    frames_per_clip: int = 4
    """Most frames of a film; a longer one is looked at more rarely, never cut."""
    fps: float | None = None
    """Frames a second; unset: `frames_per_clip` of every film."""

    def __post_init__(self) -> None:
        above_zero(self, "size", "frames_per_clip")

    def setup(self, kit: Kit) -> _Tools:
        """Load the tokenizer; on a CPU on one thread, for workers share the machine."""
        import torch

        from models.tokenizers.interface import load_tokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)
        tokenizer = load_tokenizer(kit.checkpoint("tokenizer")).to(device)
        stride = tokenizer.stride[1]
        for size in (self.size, *self.more_sizes):
            if size < stride or (self.fit == "square" and size % stride):
                raise UserError(f"indices.size is {size}: a code of this tokenizer stands for {stride} pixels, give a multiple")  # fmt: skip  # noqa: E501
        return _Tools(tokenizer, tokenizer.digest(), device, _reader(self.features, stride, device))

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Codes of each clip at every size."""
        by_size = [self._sized(rows, tools, size) for size in (self.size, *self.more_sizes)]
        return [_all_of([outcomes[place] for outcomes in by_size]) for place in range(len(rows))]

    def _sized(self, rows: Sequence[Row], tools: Any, size: int) -> dict[int, Outcome]:
        """Codes of each clip; the next ones are decoded while these are encoded."""
        outcomes: dict[int, Outcome] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, frames.Seen]]] = {}
        for place, seen in self._decoded(rows, tools.tokenizer, size):
            if isinstance(seen, BadRow):
                outcomes[place] = seen
                continue
            shape = seen.pictures.shape
            group = waiting.setdefault(shape, [])
            group.append((place, seen))
            if len(group) == batch_size(shape, tools.device):
                outcomes.update(_encoded(rows, waiting.pop(shape), tools, size))
        for group in waiting.values():
            outcomes.update(_encoded(rows, group, tools, size))
        return outcomes

    def _decoded(
        self, rows: Sequence[Row], tokenizer: VisionTokenizer, size: int
    ) -> Iterator[tuple[int, frames.Seen | BadRow]]:
        """Each row's place and frames, as they are ready."""
        view = frames.View(size=size, frames=self.frames_per_clip, fps=self.fps, fit=self.fit)

        def decoded(place: int) -> tuple[int, frames.Seen | BadRow]:
            row = rows[place]
            try:
                return place, frames.prepare(
                    row["media"], row["source_kind"], row["num_frames"], row["fps"], view, tokenizer.stride
                )
            except BadRow as bad:
                return place, bad

        with ThreadPoolExecutor(_DECODERS) as pool:
            for future in as_completed([pool.submit(decoded, place) for place in range(len(rows))]):
                yield future.result()


@dataclass(frozen=True, kw_only=True)
class InterleavedIndices(RowStage):
    """Encodes the frames of each interleaved sample, each a picture by itself, and keeps its texts beside them.

    pictures   what `indices` has of one clip, for each frame in order;  texts: one fewer, the i-th between i and i + 1
    """

    writes: ClassVar[str] = "interleaved_indices"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("interleaved", columns=("frames", "texts", "held_out")),
        Edge("tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("pictures", pa.list_(pa.struct([f for f in Indices.schema if f.name != "held_out"]))),
            ("texts", pa.list_(pa.string())),
            ("held_out", pa.bool_()),
        ]
    )

    size: int
    """Pixels: side of the square, or root of the budget of pixels."""
    fit: Literal["square", "area"] = "square"
    """As of `indices`."""

    def setup(self, kit: Kit) -> _Tools:
        """The tokenizer."""
        return self._one_by_one().setup(kit)

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """All frames of all rows, as pictures."""
        still = {"source_kind": "image", "num_frames": 1, "fps": None, "held_out": False}
        frames_of = [[still | {"media": frame} for frame in row["frames"]] for row in rows]
        encoded = iter(self._one_by_one().process([frame for part in frames_of for frame in part], tools))
        return [self._row(row, [next(encoded) for _ in part]) for row, part in zip(rows, frames_of, strict=True)]

    def _one_by_one(self) -> Indices:
        return Indices(size=self.size, fit=self.fit, frames_per_clip=1)

    def _row(self, row: Row, found: Sequence[Outcome]) -> Outcome:
        pictures = _all_of(found)
        if not isinstance(pictures, list):
            return pictures
        kept = [{name: value for name, value in picture.items() if name != "held_out"} for picture in pictures]
        return [{"pictures": kept, "texts": row["texts"], "held_out": row["held_out"]}]


def batch_size(shape: Sequence[int], device: str) -> int:
    """Clips (T, H, W, 3) that are encoded at once."""
    return max(1, BATCH_PIXELS[device] // int(np.prod(shape[:3])))


def _reader(name: str | None, stride: int, device: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    from models.tokenizers import semantic

    if name is None:
        return None
    if name == "classical":
        return lambda pixels: semantic.classical(pixels, stride)
    return semantic.Siglip(name, stride).to(device).eval()


def _all_of(found: Sequence[Outcome]) -> Outcome:
    """The rows of all sizes, or the first reason why there are none."""
    rows: list[Row] = []
    for outcome in found:
        if not isinstance(outcome, list):
            return outcome
        rows += outcome
    return rows


def _encoded(
    rows: Sequence[Row], group: Sequence[tuple[int, frames.Seen]], tools: _Tools, size: int
) -> dict[int, Outcome]:
    import torch

    from models.tokenizers.interface import to_pixels

    pictures: list[NDArray[np.uint8]] = [seen.pictures for _, seen in group]
    pictures += pictures[-1:] * (batch_size(pictures[0].shape, tools.device) - len(pictures))
    with torch.inference_mode():
        pixels = to_pixels(torch.from_numpy(np.stack(pictures)).to(tools.device))
        encoded = tools.tokenizer.encode(pixels)
        features = None if tools.reads is None else tools.reads(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    made: dict[int, Outcome] = {}
    for at, (place, seen) in enumerate(group):
        row = _row(rows[place], seen, encoded, at, tools) | {"size": size, "features": None, "feature_grid": None}
        if features is not None:
            own = features[at].permute(0, 2, 3, 1).cpu().numpy()
            row |= {"features": own.astype("<f2").tobytes(), "feature_grid": list(own.shape[:3])}
        made[place] = [row]
    return made


def _row(row: Row, seen: frames.Seen, encoded: Encoded, at: int, tools: _Tools) -> Row:
    size = tools.tokenizer.codebook_size

    def codes(ids: torch.Tensor | None) -> bytes | None:
        return None if ids is None else packed(ids[at].cpu().numpy(), size)

    latents = None if encoded.latents is None else encoded.latents[at].cpu().numpy()
    num_frames, height, width, _ = seen.pictures.shape
    return {
        "grids": [list(grid) for grid in encoded.grids],
        "ids": codes(encoded.ids),
        "input_ids": codes(encoded.input_ids),
        "latents": None if latents is None else latents.astype("<f2").tobytes(),
        "codebook_size": size,
        "tokenizer": tools.digest,
        "num_frames": num_frames,
        "fps": seen.fps,
        "height": height,
        "width": width,
        "held_out": row["held_out"],
    }
