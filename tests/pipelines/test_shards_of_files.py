"""A tar is one object with many contents: each is found, traced, moved and taken down as a file of its own."""

from __future__ import annotations

import io
import tarfile

from pipelines import forget
from pipelines.lineage import Lineage
from pipelines.standing import Standing
from pipelines.target import Finder


def write_shard(toy, name: str, contents: dict[str, str], keep_bytes: int | None = None) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, text in contents.items():
            info = tarfile.TarInfo(member)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    (toy.source / name).write_bytes(buffer.getvalue()[:keep_bytes])


def test_members_are_read_traced_moved_and_forgotten_like_files(make_toy):
    toy = make_toy()
    toy.write("plain.txt", "alone")
    write_shard(
        toy, "s.tar", {"a.txt": "first words", "b.txt": "second here", "c.txt": "cut off in the middle"}, 512 * 5
    )
    run = toy.run()
    assert {row["text"] for row in toy.rows("texts", ["text"])} == {"alone", "first words", "second here"}
    assert run["texts"]["quarantined"] == 1
    standing = Standing(toy.root)
    up = Lineage(standing).up(Finder(standing).find(toy.rows("words", ["key"])[0]["key"].hex()))
    assert any(node["kind"] == "file" for node in up.nodes.values())
    down = Lineage(standing).down(Finder(standing).find("s.tar/b.txt"))
    assert {n["label"] for n in down.nodes.values() if n["label"].startswith("words: ")} == {
        "words: second",
        "words: here",
    }

    (toy.source / "deep").mkdir()
    (toy.source / "s.tar").rename(toy.source / "deep" / "moved.tar")
    toy.forget_calls()
    moved = toy.run(words={"min_chars": 2})  # words are cut anew, from texts that nobody read again
    assert toy.calls("words") == 3 and moved["texts"]["computed"] == 0

    forget.deny(Standing(toy.root), forget.find(Standing(toy.root), "deep/moved.tar/b.txt"))
    toy.run()
    assert {row["text"] for row in toy.rows("texts", ["text"])} == {"alone", "first words"}
