"""What `plait doctor --storage` says of stores that can be trusted, and of such that cannot."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pytest

from infra.bucket import Bucket
from infra.conformance import CHECKS, Check, examine
from infra.folder_bucket import LocalBucket
from infra.s3_bucket import S3Bucket
from tests.conftest import REPO, plait
from tests.faults.s3_proxy import S3Proxy

ALL = [check.what for check in CHECKS]
GIVEN = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
"""Credentials of the environment, before those of moto's store take their place."""


def failed(bucket: Bucket, checks: tuple[Check, ...] = CHECKS) -> dict[str, str]:
    """What the store fails at, with what is said of it."""
    findings = examine(bucket, checks)
    assert [f.what for f in findings] == [check.what for check in checks]
    assert bucket.names("doctor") == [], "it leaves nothing behind"
    assert all("\n" not in f.said and len(f.said) < 400 for f in findings), findings
    return {f.what: f.said for f in findings if not f.ok}


def test_a_folder_gives_all_that_plait_needs(tmp_path):
    assert failed(LocalBucket(tmp_path / "root")) == {}
    assert not any((tmp_path / "root" / "doctor").iterdir())


@pytest.mark.slow
def test_a_store_with_conditional_puts_gives_all_that_plait_needs(s3_endpoint):
    assert failed(S3Bucket(f"s3://plait/{uuid.uuid4().hex}", s3_endpoint)) == {}


@pytest.mark.parametrize(
    ("header", "found_out"),
    [("if-none-match", {"conditional put", "existing object"}), ("range", {"ranged reads"})],
)
def test_a_store_that_ignores_a_header_is_found_out(header, found_out, s3_endpoint):
    others = {"delete", "names"}
    checks = tuple(check for check in CHECKS if check.what in found_out | others)
    with S3Proxy(s3_endpoint, {}, ignores=(header,)) as proxy:
        said = failed(S3Bucket(f"s3://plait/{uuid.uuid4().hex}", proxy.endpoint, num_retries=1), checks)
    assert said.keys() == found_out, said
    assert all(said[check.what].endswith(check.breaks) for check in checks if check.what in said)


@pytest.mark.skipif(
    not os.environ.get("PLAIT_TEST_S3_ROOT"),
    reason="no store is named: set PLAIT_TEST_S3_ROOT=s3://bucket/prefix, PLAIT_TEST_S3_ENDPOINT where it is not AWS,"
    " and its credentials",
)
def test_the_store_of_the_environment_gives_all_that_plait_needs(monkeypatch):
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers moto's
    assert failed(S3Bucket(os.environ["PLAIT_TEST_S3_ROOT"], os.environ.get("PLAIT_TEST_S3_ENDPOINT"))) == {}


def test_the_command_names_each_check(tmp_path):
    done = plait("doctor", "root=here", "tracking=none", "--storage", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and answer["ok"], done.stderr
    assert [check["what"] for check in answer["checks"]] == ALL


@dataclass
class Pager:
    """Stands where boto3's client does: a bucket of very many names, a thousand a page, which may fail once."""

    num: int
    fails_at: int = -1
    num_pages: int = 0

    def list_objects_v2(self, Prefix="", MaxKeys=1000, StartAfter="", ContinuationToken="", **_):
        self.num_pages += 1
        if self.num_pages == self.fails_at:
            raise InterruptedError
        start = int(ContinuationToken or (int(StartAfter[-9:]) + 1 if StartAfter else 0))
        end = min(start + MaxKeys, self.num)
        page = [
            {"Key": f"src/videos/part-{i // 10_000:05d}/{i:09d}", "Size": i, "ETag": f'"{i:032x}"'}
            for i in range(start, end)
        ]
        return {"Contents": page, "IsTruncated": end < self.num, "NextContinuationToken": str(end)}


def paged(pager: Pager) -> S3Bucket:
    bucket = S3Bucket("s3://plait/src")
    bucket.__dict__["_client"] = pager
    return bucket


def test_a_listing_that_broke_off_goes_on_behind_its_last_name():
    bucket = paged(Pager(10_000, fails_at=4))
    found: list[str] = []

    def take(entries: Iterator) -> None:
        for entry in entries:
            found.append(entry.path)

    with pytest.raises(InterruptedError):
        take(bucket.entries())
    assert len(found) == 3000
    take(bucket.entries(after=found[-1]))
    assert len(found) == len(set(found)) == 10_000 and found == sorted(found)


LIST = """
import time
from infra.listing import list_source
from tests.infra.test_conformance import Pager, paged
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before, started = peak(), time.monotonic()
table = list_source(paged(Pager({num})), limit={limit})
print(table.num_rows, peak() - before, time.monotonic() - started, table["path"][0].as_py())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "mib"), [(None, 140), (1000, 90)])  # 20 MiB of names; as Python objects 300
def test_very_many_names_are_listed_in_bounded_memory(limit, mib):  # a million: docs/storage.md
    code = LIST.format(num=200_000, limit=limit)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    rows, used, *_ = done.stdout.split()
    assert int(rows) == (limit or 200_000)
    assert float(used) < mib, done.stdout
