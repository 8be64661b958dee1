"""What every node must see: the sample corpus of a root in a store, whole and brought once; folders, or it says so."""

from __future__ import annotations

import errno
import socket
from typing import cast

import pytest

from infra.actors import Host
from infra.folder_bucket import LocalBucket
from infra.ledger import Folder
from infra.requests import counted
from infra.types import TransientError
from pipelines.cli.compose import setup, source_of
from pipelines.cli.corpus import TRUTH, ensure_corpus, has_corpus
from pipelines.worker import ShardWorker
from stages import sample_corpus
from stages.ingest import Videos

TINY = {"num_videos": 1, "num_stills": 12, "num_texts": 2}


class Said(list):
    """What a person was told."""

    note = list.append


def test_a_corpus_in_a_store_is_that_of_a_folder_and_is_brought_there_once(s3_endpoint, tmp_path):
    place = ["storage=s3", "storage.root=s3://plait/corpus", f"storage.endpoint={s3_endpoint}"]
    made, said = setup([*place, *(f"sample.{name}={value}" for name, value in TINY.items())]), Said()
    assert not has_corpus(made)
    ensure_corpus(made, said)
    sample_corpus.write(tmp_path / "raw", tmp_path / TRUTH, **TINY)
    there = {entry.path: entry.size_bytes for entry in source_of(made).entries()}
    assert there == {entry.path: entry.size_bytes for entry in LocalBucket(tmp_path / "raw").entries()}
    assert made.sample.get(TRUTH) == (tmp_path / TRUTH).read_bytes()
    with counted() as asked:
        ensure_corpus(made, said)
    assert asked["PUT"] == 0 and len(said) == 1
    lost = next(iter(there))
    made.sample.delete(f"raw/{lost}")
    ensure_corpus(made, said)
    assert made.sample.size(f"raw/{lost}") == there[lost]


def test_a_disk_that_is_full_of_the_corpus_is_one_sentence(tmp_path, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample_corpus, "write", full)
    with pytest.raises(TransientError, match=r"no disk space is left .* make room, then run the same command again"):
        ensure_corpus(setup([f"root={tmp_path}"]), Said())


def test_a_node_without_the_folder_takes_no_rows_and_says_why(tmp_path):
    (tmp_path / "source").mkdir()
    for root, source in (("gone", "source"), (".", "gone")):
        worker = ShardWorker(
            stage=Videos(), recipe="", root=LocalBucket(tmp_path / root), source=LocalBucket(tmp_path / source),
            inputs=(), parents={}, sides={}, files=None, batch_rows=1, deadline_s=1.0, folder=cast(Folder, None),
            plan_number=0,
        )  # fmt: skip
        answer = Host().prepare(worker)
        assert f"{socket.gethostname()} has no folder {tmp_path}/gone: give s3://" in answer["transient"]
