"""What stores were asked is counted for who asked: as sent, by kind, over threads and processes."""

import os
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from infra import requests, telemetry
from infra.folder_bucket import LocalBucket
from infra.requests import RECEIVED, SENT, counted
from infra.s3_bucket import S3Bucket
from tests.faults.s3_proxy import S3Proxy


@pytest.fixture
def bucket(s3_endpoint):
    return S3Bucket(f"s3://plait/{uuid.uuid4().hex}", s3_endpoint)


def test_each_kind_is_counted_with_its_bytes(bucket, tmp_path):
    with counted() as asked:
        bucket.put("a", b"x" * 1000)
        bucket.put_if_absent("a", b"y")  # refused, and read back
        bucket.size("a")
        bucket.names("")
        bucket.delete("a")
    assert {kind: asked[kind] for kind in requests.KINDS} == {"PUT": 2, "GET": 1, "LIST": 1, "HEAD": 1, "DELETE": 1}
    assert asked[SENT] == 1001 and 1000 < asked[RECEIVED] < 3000
    with counted() as nothing:
        LocalBucket(tmp_path).put("a", b"x")
    assert nothing == Counter()


def test_parts_that_other_threads_upload_are_counted(bucket, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(9 << 20))
    with counted() as asked:
        bucket.upload("large", tmp_path / "large")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: bucket.put(f"n{i}", b""), range(5)))
    assert asked["PUT"] == 4 + 5 and asked[SENT] > 9 << 20  # begin, two parts, end


def test_what_is_sent_again_is_counted_again(bucket, s3_endpoint):
    with S3Proxy(s3_endpoint, {"503": 0.5}, seed=3) as proxy:
        again = S3Bucket(bucket.uri, proxy.endpoint)
        with counted() as asked:
            for number in range(4):
                again.put(f"n{number}", b"x")
        assert asked["PUT"] == proxy.num_requests > 4 and asked[SENT] == proxy.num_requests


def test_two_at_work_in_threads_of_their_own_count_their_own_and_others_are_added(bucket):
    def work(num: int) -> Counter[str]:
        with counted() as mine:
            for _ in range(num):
                bucket.get("none")
            requests.add({"GET": 10, SENT: 5})
        return mine

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, (3, 7)))
    assert [(f["GET"], f[SENT]) for f in found] == [(13, 5), (17, 5)]


def test_a_shard_that_ended_is_counted_by_outcome(monkeypatch):
    told = []

    class Metric:
        def __init__(self, name):
            self.name = name

        def inc(self, value, tags):
            told.append((self.name, tags.get("outcome") or tags.get("kind"), value))

        set = inc

    names = ("units", "rows", "requests", "backlog", "actors")
    monkeypatch.setattr(telemetry, "_declared", lambda: SimpleNamespace(**{name: Metric(name) for name in names}))
    meter = telemetry.Meter("words", "run", 10)
    rest = [{"state": "filtered"}, {"state": "quarantined"}, {"state": "filtered"}]
    meter.ended({"units": 6, "rows": 9, "rest": rest})
    meter.working(2)
    meter.asked({"GET": 3, "HEAD": 0})
    assert told == [
        ("units", "made", 3),
        ("units", "filtered", 2),
        ("units", "quarantined", 1),
        ("rows", None, 9),
        ("backlog", None, 4),
        ("actors", None, 2),
        ("requests", "GET", 3),
    ]
