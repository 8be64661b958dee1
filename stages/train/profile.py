"""A trace of a few steps, for `plait run --profile`."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

_SKIPPED, _TRACED = 3, 3
"""Steps that are left out (the first are not like the others), and steps in the trace."""


class Profile:
    """PyTorch's profiler around steps 4 to 6 of this start, on one rank; the trace opens in ui.perfetto.dev."""

    def __init__(self, wanted: bool, sink: Any) -> None:
        self._sink, self._left = sink, _SKIPPED if wanted else -1
        self._open: Any = None

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._open is not None:
            self._end()

    def step(self) -> None:
        """A step has ended."""
        if self._left < 0:
            return
        self._left -= 1
        if self._left == -1 and self._open is None:
            self._open, self._left = torch.profiler.profile(record_shapes=True, profile_memory=True), _TRACED - 1
            self._open.__enter__()
        elif self._left == -1:
            self._end()

    def _end(self) -> None:
        self._open.__exit__(None, None, None)
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._open.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=40)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            self._open.export_chrome_trace(str(path))
            self._sink.show.remote("trace.json.gz", gzip.compress(path.read_bytes()))
        self._sink.show.remote("trace.txt", table.encode())
        self._sink.note.remote("three steps were traced: pictures/trace.txt and trace.json.gz of the stage, in MLflow")
        self._open = None
