"""Raw files for the curation tests: the real data where it lies, and one small sample corpus per session."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.stages.endpoint_server import Endpoint


@dataclass(frozen=True)
class LocalFile:
    """A RawFile over a path."""

    path: Path
    label: str

    @contextmanager
    def local(self) -> Iterator[Path]:
        yield self.path

    def open(self) -> BinaryIO:
        return self.path.open("rb")


def raw_row(path: Path, dataset: str = "files", **more: Any) -> dict[str, Any]:
    """What the engine hands to a stage that reads raw files."""
    digest = hashlib.sha256(path.read_bytes())
    return {
        "path": path.name,
        "size_bytes": path.stat().st_size,
        "stamp": "1",
        "label": path.name,
        "raw": LocalFile(path, path.name),
        "digest": digest.hexdigest(),
        "key": digest.digest()[:16],
        "dataset": dataset,
        **more,
    }


@dataclass(frozen=True)
class Corpus:
    raw: Path
    truth: dict[str, Any]
    truth_path: Path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The sample corpus with all its films, few stills and texts."""
    from stages import sample_corpus

    home = tmp_path_factory.mktemp("sample")
    sample_corpus.write(home / "raw", home / "truth.json", num_stills=120, num_texts=6)
    return Corpus(home / "raw", json.loads((home / "truth.json").read_text()), home / "truth.json")


@pytest.fixture(scope="session")
def video_row() -> Callable[[Path], dict[str, Any]]:
    """A raw video as the `clips` stage gets it, probed."""
    from stages.probe import probe

    def make(path: Path) -> dict[str, Any]:
        return raw_row(path, "videos", **{name: value for name, value in probe(path).items() if name != "digest"})

    return make


@pytest.fixture(scope="session")
def corpus_clips(corpus: Corpus, video_row: Callable[[Path], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Clips of every readable file of the corpus, by its name."""
    from stages.clip import Clips

    cutter = Clips()
    clips = {}
    for name, told in corpus.truth["files"].items():
        path = corpus.raw / name
        if told["kind"] == "image":
            clips[name] = cutter.process([raw_row(path, "images")], None)[0]
        elif told["kind"] == "video" and "scenes" in told:
            clips[name] = cutter.process([video_row(path)], None)[0]
    return clips


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint that the environment points at."""
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
