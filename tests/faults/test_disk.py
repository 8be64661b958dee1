"""A disk that fills up ends the run in one sentence that says so, blames no row, and the same command goes on."""

import errno
import os
import shutil
import subprocess

import pytest

from infra.folder_bucket import LocalBucket
from infra.types import PlaitError
from pipelines.standing import Standing

WORDS = [f"word{i}" for i in range(40)]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, and a function that sets its size."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a tmpfs")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, leave_bytes=0):
    """Take all that is free but for some bytes."""
    free = shutil.disk_usage(folder).free
    with (folder / "ballast").open("wb") as file:
        file.write(b"x" * max(0, free - leave_bytes))


@pytest.mark.parametrize("leave_kb", [0, 12, 40, 120])
def test_a_full_disk_ends_the_run_in_one_sentence_and_the_same_command_goes_on(leave_kb, make_toy, small_disk):
    folder, resize = small_disk
    toy = make_toy(root=LocalBucket(folder / "root"))
    toy.write("a.txt", " ".join(WORDS))
    fill(folder, leave_kb << 10)
    with pytest.raises(PlaitError) as failed:
        toy.run()
    said = str(failed.value)
    assert ("disk space" in said or os.strerror(errno.ENOSPC) in said) and "make room" in said, said
    assert "run again" in said or "run the same command again" in said, said
    assert "\n" not in said and len(said) < 500, said
    resize("64m")
    made = toy.run()
    assert [s["quarantined"] for s in made.values()] == [0] * len(made)
    assert sorted(r["label"] for r in toy.rows("lengths", ["label"])) == sorted(WORDS)
    standing = Standing(toy.root)
    assert all(standing.store.head(name) == len(dones) == 1 for name, dones in standing.all.items())


def test_a_put_that_does_not_fit_is_not_there_at_all(small_disk):
    folder, resize = small_disk
    bucket = LocalBucket(folder / "root")
    with pytest.raises(PlaitError, match="make room"):
        bucket.put_if_absent("ledger/big", b"x" * (2 << 20))
    assert bucket.get("ledger/big") is None
    assert [p for p in folder.rglob("*") if p.is_file()] == []
    resize("8m")
    assert bucket.put_if_absent("ledger/big", b"x" * (2 << 20))
