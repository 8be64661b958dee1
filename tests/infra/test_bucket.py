"""One interface over a folder and over S3: of all who put a name, one wins, and everybody reads the winner's bytes."""

import hashlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from infra.bucket import open_bucket
from infra.folder_bucket import LocalBucket
from infra.listing import SourceFile
from infra.s3_bucket import S3Bucket
from infra.types import TransientError, UserError
from tests.faults.s3_proxy import S3Proxy


@pytest.fixture(params=["folder", "s3"])
def bucket(request, tmp_path):
    if request.param == "folder":
        return LocalBucket(tmp_path)
    endpoint = request.getfixturevalue("s3_endpoint")
    return S3Bucket(f"s3://plait/{tmp_path.name}", endpoint)


def test_of_many_writers_one_wins_and_all_read_its_bytes(bucket):
    def put(i):
        return bucket.put_if_absent("a/claim.1", f"writer {i}".encode())

    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(put, range(8)))
    assert wins.count(True) == 1
    assert bucket.get("a/claim.1") == f"writer {wins.index(True)}".encode()


def test_a_writer_whose_reply_was_lost_finds_that_it_won(bucket):
    assert bucket.put_if_absent("x", b"mine 1234")
    assert bucket.put_if_absent("x", b"mine 1234")  # the retry of the same put, with its nonce
    assert not bucket.put_if_absent("x", b"other")


def test_names_sizes_and_bytes_come_back(bucket, tmp_path):
    bucket.put_if_absent("a/b/c.json", b"12345")
    bucket.put("a/d", b"1")
    bucket.put("a/d", b"22")
    source = tmp_path / ".upload-me"
    source.write_bytes(b"x" * 100_000)
    bucket.upload("big/file", source)
    assert sorted(bucket.names("a")) == ["a/b/c.json", "a/d"] and bucket.names("none") == []
    assert (bucket.size("a/d"), bucket.size("big/file"), bucket.size("nothing")) == (2, 100_000, None)
    assert bucket.get("nothing") is None
    with bucket.local("big/file") as path:
        assert path.read_bytes() == b"x" * 100_000
    assert pickle.loads(pickle.dumps(bucket)).get("a/d") == b"22"


def test_a_part_of_an_object_comes_alone_and_ends_where_the_object_ends(bucket, tmp_path):
    bucket.put("big", bytes(range(200)) * 10_000)
    target = tmp_path / ".part"
    for offset, size, wanted in (
        (203, 5, bytes(range(3, 8))),
        (0, 0, b""),
        (1_999_998, 9, b"\xc6\xc7"),
        (2_000_000, 1, b""),
    ):
        bucket.part("big", offset, size, target)
        assert target.read_bytes() == wanted
    with pytest.raises(FileNotFoundError):
        bucket.part("nothing", 0, 1, target)


def test_of_a_member_of_a_shard_only_its_range_travels(s3_endpoint, tmp_path):
    S3Bucket(f"s3://plait/{tmp_path.name}", s3_endpoint).put("a.tar", b"-" * 3_000_000 + b"member" + b"-" * 3_000_000)
    digest = hashlib.sha256(b"member").hexdigest()
    with S3Proxy(s3_endpoint, {}) as proxy:
        source = S3Bucket(f"s3://plait/{tmp_path.name}", proxy.endpoint)
        member = SourceFile(source, "a.tar/m.txt", digest, "a.tar", 3_000_000, 6)
        with member.local() as path:
            assert path.read_bytes() == b"member" and path.suffix == ".txt"
        assert proxy.num_requests == 1 and proxy.num_bytes < 1000
        with pytest.raises(TransientError, match="changed after"), replace(member, offset=9_000_000).local():
            pass
        with pytest.raises(TransientError, match="vanished"), replace(member, container="b.tar").local():
            pass


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/passwd", "a//b"])
def test_a_name_cannot_leave_the_folder(bucket, name):
    for call in (lambda: bucket.put_if_absent(name, b""), lambda: bucket.get(name), lambda: bucket.size(name)):
        with pytest.raises(UserError, match="leave its folder"):
            call()


def test_more_than_a_page_of_names_is_listed(s3_endpoint, tmp_path):
    bucket = S3Bucket(f"s3://plait/{tmp_path.name}-many", s3_endpoint)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: bucket.put(f"m/{i:05d}", b""), range(1100)))
    assert len(bucket.names("m")) == 1100


def test_what_is_wrong_with_a_store_is_one_sentence(s3_endpoint, tmp_path):
    with pytest.raises(UserError, match="names no bucket"):
        S3Bucket("s3://")
    with pytest.raises(UserError, match="no place that plait reads"):
        open_bucket("gs://bucket")
    with pytest.raises(UserError, match="NoSuchBucket"):
        S3Bucket("s3://not-there", s3_endpoint).put("a", b"")
    away = S3Bucket("s3://plait", "http://127.0.0.1:9")
    away._client.meta.config.retries["total_max_attempts"] = 1
    with pytest.raises(TransientError, match="did not answer"):
        away.get("a")


def test_a_name_that_is_not_utf8_is_listed_readably_and_can_be_opened(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.txt")).write_bytes(b"here")
    bucket = LocalBucket(tmp_path)
    (name,) = bucket.names("")
    assert name == "odd\\xff.txt" and bucket.size(name) == 4
    with bucket.local(name) as path:
        assert path.read_bytes() == b"here"
