"""Everything that lies in a source is counted: what is no readable file has a reason."""

import os
import socket

import pytest

from infra.folder_bucket import LocalBucket
from infra.listing import list_source
from infra.types import UserError


def listed(folder):
    """Path to the reason why it is left out."""
    table = list_source(LocalBucket(folder))
    return dict(zip(table["path"].to_pylist(), table["left_out"].to_pylist(), strict=True))


def strew(source, outside):
    """One of everything that is no plain file."""
    (source / "a.txt").write_text("plain")
    (outside / "real.txt").write_text("elsewhere")
    (source / "linked.txt").symlink_to(outside / "real.txt")
    (source / "gone.txt").symlink_to(outside / "nothing")
    (source / "deep").mkdir()
    (source / "deep" / "loop").symlink_to(source)
    (source / "other").symlink_to(outside)
    (source / ".git").mkdir()
    (source / ".git" / "x.txt").write_text("not entered")
    (source / ".DS_Store").write_bytes(b"0")
    os.mkfifo(source / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(source / "sock.txt"))


def test_links_pipes_sockets_and_hidden_files_are_listed_with_a_reason_and_no_loop_is_entered(tmp_path):
    source, outside = tmp_path / "src", tmp_path / "outside"
    source.mkdir()
    outside.mkdir()
    strew(source, outside)
    found = listed(source)
    assert {path for path, why in found.items() if not why} == {"a.txt", "linked.txt"}
    reasons = {path: why.partition(":")[0] for path, why in found.items() if why}
    assert reasons == {
        "gone.txt": "link to nothing", "deep/loop": "link to a folder", "other": "link to a folder",
        ".git": "hidden folder", ".DS_Store": "hidden file", "pipe.txt": "no file", "sock.txt": "no file",
    }  # fmt: skip
    assert sorted(LocalBucket(source).names("")) == ["a.txt", "linked.txt"]  # what is none is no object of a root


def test_a_source_of_nothing_but_strays_is_empty(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(UserError, match="holds no file"):
        listed(tmp_path)
