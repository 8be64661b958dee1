"""The sample corpus in a root, for people without data: a folder's is written there, a store's is brought there."""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TRUTH = "truth.json"
UPLOADS = 8


def has_corpus(made: Any) -> bool:
    """Whether a corpus was written to the root, with whatever settings."""
    return made.sample.size(TRUTH) is not None


def source_so_far(made: Any) -> Any:
    """The source; None where it is the sample corpus, which has not been written yet."""
    from pipelines.cli.compose import source_of

    return None if made.config.source is None and not has_corpus(made) else source_of(made)


def ensure_corpus(made: Any, progress: Any) -> None:
    """Write the corpus of the configuration unless it is there, whole; the truth about it comes last. TransientError
    where a disk is full, or a store fails."""
    from infra.world import is_world, world_failed

    try:
        _ensure(made, progress)
    except OSError as error:
        if not is_world(error):
            raise
        raise world_failed(error) from error


def _ensure(made: Any, progress: Any) -> None:
    from infra.folder_bucket import LocalBucket
    from stages import sample_corpus

    settings, place = dataclasses.asdict(made.config.sample), made.sample
    if not has_corpus(made):
        progress.note(f"no source is given: writing the sample corpus to {place.url('raw')}")
    if isinstance(place, LocalBucket):
        sample_corpus.write(place.folder / "raw", place.folder / TRUTH, **settings)
        return
    sizes = {entry.path: entry.size_bytes for entry in place.below("raw").entries()}
    if sample_corpus.is_whole(place.get(TRUTH), sizes, **settings):
        return
    with tempfile.TemporaryDirectory(prefix="plait-sample-") as folder, ThreadPoolExecutor(UPLOADS) as threads:
        raw, truth = Path(folder, "raw"), Path(folder, TRUTH)
        sample_corpus.write(raw, truth, **settings)
        files = [path for path in raw.rglob("*") if path.is_file()]
        list(threads.map(lambda path: place.upload(f"raw/{path.relative_to(raw).as_posix()}", path), files))
        place.upload(TRUTH, truth)
