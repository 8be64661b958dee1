"""Pre-extract the visual codes of every clip, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from stages import frames
from stages.base import BadRow, Edge, Kit, Outcome, Row, RowStage

if TYPE_CHECKING:
    from models.tokenizers.vq import VqTokenizer


@dataclass(frozen=True)
class _Tools:
    tokenizer: VqTokenizer
    digest: str


@dataclass(frozen=True, kw_only=True)
class Indices(RowStage):
    """Encodes the frames of each clip with the trained tokenizer: a grid (t, h, w) and its codes in raster order.

    Frames are prepared exactly as in training (stages/frames.py), with the sizes the checkpoint states. Each clip is
    encoded by itself: floating-point kernels may round differently for another batch size, and a code at a tie would
    then depend on its neighbours. The digest of the tokenizer stands in every row.
    """

    writes: ClassVar[str] = "indices"
    inputs: ClassVar[tuple[Edge, ...]] = (
        Edge("clips", columns=("media", "source_kind", "num_frames", "held_out")),
        Edge("tokenizer", role="side"),
    )
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("grid_t", pa.int32()),
            ("grid_h", pa.int32()),
            ("grid_w", pa.int32()),
            ("ids", pa.list_(pa.int32())),
            ("codebook_size", pa.int32()),
            ("tokenizer", pa.string()),
            ("held_out", pa.bool_()),
        ]
    )

    def setup(self, kit: Kit) -> _Tools:
        """Load the tokenizer on one thread: workers share the machine."""
        import torch

        from models.tokenizers.vq import load_vq

        torch.set_num_threads(1)
        tokenizer = load_vq(kit.checkpoint("tokenizer"))
        return _Tools(tokenizer, tokenizer.digest())

    def process(self, rows: Sequence[Row], tools: Any) -> Sequence[Outcome]:
        """Codes of each clip."""
        return [_encoded(row, tools) for row in rows]


def _encoded(row: Row, tools: _Tools) -> Outcome:
    import torch

    from models.tokenizers.vq import to_pixels

    config = tools.tokenizer.config
    try:
        pictures = frames.prepare(row["media"], row["source_kind"], config.frames, config.size)
    except BadRow as bad:
        return bad
    codes = tools.tokenizer.encode(to_pixels(torch.from_numpy(pictures)))
    t, h, w = codes.shape
    made: Row = {"grid_t": t, "grid_h": h, "grid_w": w, "ids": codes.flatten().tolist()}
    made["codebook_size"] = config.codebook_size
    return [made | {"tokenizer": tools.digest, "held_out": row["held_out"]}]
