"""The doctor tells a store that can be trusted from one that cannot, and every finding is one sentence."""

import pytest

from infra.folder_bucket import LocalBucket
from infra.s3_bucket import S3Bucket
from pipelines import doctor
from pipelines.doctor import examine


class Careless(LocalBucket):
    """A store that takes every put for the first one."""

    def put_if_absent(self, name, data):
        """Everybody wins."""
        self.put(name, data)
        return True


def found(root, source=None):
    """Findings by what was looked at."""
    return {f.what: f for f in examine(root, source, lambda: None, None)}


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_good_store_passes_and_is_left_as_it_was(kind, tmp_path, request):
    root = LocalBucket(tmp_path)
    if kind == "s3":
        root = S3Bucket("s3://plait/doctored", request.getfixturevalue("s3_endpoint"))
    findings = found(root)
    assert all(f.ok for f in findings.values()), findings
    assert root.names("doctor") == []


def test_a_store_without_conditional_puts_is_found_out(tmp_path):
    finding = found(Careless(tmp_path))["conditional put"]
    assert not finding.ok and "If-None-Match" in finding.said and "\n" not in finding.said


def test_an_empty_source_and_a_store_that_is_away_are_told(tmp_path, s3_endpoint):
    (tmp_path / "empty").mkdir()
    assert not found(LocalBucket(tmp_path), LocalBucket(tmp_path / "empty"))["source"].ok
    away = found(S3Bucket("s3://no-such-bucket", s3_endpoint))
    assert not away["conditional put"].ok and "NoSuchBucket" in away["conditional put"].said


@pytest.mark.parametrize("line", ["import no_library_of_that_name", "import ctypes; ctypes.CDLL('libnone.so.1')"])
def test_a_package_that_lacks_a_library_of_the_machine_is_told(line, tmp_path, monkeypatch):
    (tmp_path / "lame_package.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "NATIVE", ("lame_package",))
    finding = found(LocalBucket(tmp_path / "root"))["packages"]
    assert not finding.ok and finding.said.startswith("lame_package cannot be loaded (") and "\n" not in finding.said
