"""No secret is written down, and no name out of the data leads out of its folder."""

import hashlib
import json
import uuid

import pytest

from infra.checkpoints import CheckpointFolder, download
from infra.folder_bucket import LocalBucket
from infra.s3_bucket import S3Bucket
from infra.types import RunError, UserError, without_secrets
from pipelines.graph import Graph, Node
from pipelines.standing import Standing
from tests.conftest import S3_SECRET, plait
from tests.toy import Words

PASSWORD, TOKEN = "hunter2-pass", "t0ken-t0ken"
SECRETS = (S3_SECRET.encode(), PASSWORD.encode(), TOKEN.encode())


def assert_clean(where: str, data: bytes) -> None:
    found = [s for s in SECRETS if s in data]
    assert not found, f"{found} in {where}"


@pytest.mark.slow
def test_a_run_over_s3_writes_no_secret_anywhere(s3_endpoint, tmp_path, ray):
    """Credentials in the environment, a password and a token in an address that is away, and one in the store's."""
    prefix = uuid.uuid4().hex[:8]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text("one two boom3 drop4")
    toy = ["pipeline=tests.toy:graph", "source=src", "storage=s3", f"storage.root=s3://plait/{prefix}/root"]
    there = f"storage.endpoint={s3_endpoint}"
    address = f"tracking.uri=http://me:{PASSWORD}@127.0.0.1:9/?token={TOKEN}"
    near = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = plait("run", *toy, there, address, "--json", cwd=tmp_path, env=near)
    assert said.returncode == 0, said.stderr
    assert "plait sync" in said.stderr  # MLflow was away, and the note about it is looked at below
    refused = plait("run", *toy, there.replace("http://", f"http://me:{PASSWORD}@"), cwd=tmp_path, env=near)
    assert refused.returncode == 2 and "environment" in refused.stderr
    gone = plait("run", *toy, "storage.endpoint=http://127.0.0.1:9", f"storage.root=s3://a:{PASSWORD}@b", cwd=tmp_path)
    assert gone.returncode == 2
    for run in (said, refused, gone):
        assert_clean("what was printed", (run.stdout + run.stderr).encode())
    sync = plait("sync", *toy, there, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path, env=near)
    assert sync.returncode == 0 and (tmp_path / "mlflow.db").exists(), sync.stderr
    for path in tmp_path.rglob("*"):  # MLflow's database and artifacts
        if path.is_file():
            assert_clean(str(path), path.read_bytes())
    store = S3Bucket(f"s3://plait/{prefix}", s3_endpoint)
    names = store.names("root")
    for kind in ("ledger/runs/", "_versions/", "_transactions/", "/data/", "/rest."):
        assert any(kind in name for name in names), kind
    for name in names:
        assert_clean(name, store.get(name) or b"")


def test_whatever_looks_like_a_secret_in_an_address_is_taken_out():
    text = f"x http://me:{PASSWORD}@h/p?a=1&token={TOKEN}&b=2 and s3://k:{PASSWORD}@b?X-Amz-Signature={TOKEN}"
    assert without_secrets(text) == "x http://***@h/p?a=1&token=***&b=2 and s3://***@b?X-Amz-Signature=***"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", ".."])
def test_no_object_name_leaves_its_folder(name, tmp_path):
    (tmp_path / "x").write_text("outside")
    bucket = LocalBucket(tmp_path / "root")
    for touch in (bucket.get, bucket.size, bucket.delete, bucket.local, lambda n: bucket.put_if_absent(n, b"")):
        with pytest.raises(UserError, match="leave its folder"):
            touch(name)
    assert (tmp_path / "x").read_text() == "outside" and not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "x y", "x.lance/../y"])
def test_a_dataset_must_have_a_plain_name(name):
    class Odd(Words):
        writes = name
        inputs = ()

    with pytest.raises(UserError, match=r"is no name for a dataset: use letters, digits and _"):
        Graph("odd", (Node(Odd()),))


def test_a_source_whose_names_try_to_leave_it_loses_only_those_files(make_toy, s3_endpoint):
    """A listing is data: a store may hold keys with `..`, and a tar-like name is quarantined, not followed."""
    prefix = uuid.uuid4().hex[:8]
    source = S3Bucket(f"s3://plait/{prefix}/src", s3_endpoint)
    source.put("good.txt", b"one two")
    for key in (f"{prefix}/src/../../other/x.txt", f"{prefix}/src//etc/passwd.txt"):
        source._client.put_object(Bucket="plait", Key=key, Body=b"three")
    made = make_toy(source=source).run()
    assert (made["files"]["rows_out"], made["files"]["quarantined"], made["words"]["rows_out"]) == (1, 2, 2)


def test_labels_and_texts_of_the_data_name_no_file(make_toy, tmp_path):
    toy = make_toy()
    toy.write("a.txt", "../../escaped /etc/escaped %2e%2e%2fescaped boom/../../escaped")
    made = toy.run()
    assert made["words"]["rows_out"] == 4 and made["lengths"]["quarantined"] == 1
    assert not [*tmp_path.parent.rglob("*escaped*")]
    standing = Standing(toy.root)
    for odd in ("../../x", "ledger/../../x", "words@../1"):
        with pytest.raises(UserError):
            standing.done(odd)


@pytest.mark.parametrize("folder", [None, "../../outside"])
@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_a_file_outside_is_refused(folder, name, tmp_path):
    root = LocalBucket(tmp_path / "root")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights").write_bytes(b"w")
    saved = CheckpointFolder(root, "checkpoints/model/k.1").save(1, tmp_path / "made", {})
    manifest = json.loads(root.get(saved.manifest) or b"")
    manifest["files"] = {name: {"bytes": 1, "sha256": hashlib.sha256(b"w").hexdigest()}}
    manifest["folder"] = folder or manifest["folder"]
    (root.folder / saved.manifest).write_text(json.dumps(manifest))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises((RunError, UserError), match="leave its folder"):
        download(root, saved.manifest, into)
    assert not [*tmp_path.rglob("passwd")] and list(into.iterdir()) == []
