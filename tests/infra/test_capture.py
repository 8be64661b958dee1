"""What code prints and logs is kept, bounded, in order, without secrets, and still goes where it went."""

import logging
import sys

from infra.capture import MAX_BYTES, MAX_LINES, capture
from infra.types import without_secrets


def test_prints_and_logs_come_back_in_order_and_still_reach_their_stream(capsys):
    with capture() as said:
        print("one")
        print("two", end="")
        print(" halves")
        logging.getLogger("lib").warning("three %d", 3)
        print("four", file=sys.stderr)
        print("10%\r50%\r100%")
    report = said.report()
    assert [(line["level"], line["text"]) for line in report["lines"]] == [
        ("out", "one"), ("out", "two halves"), ("warning", "lib: three 3"), ("err", "four"), ("out", "100%")
    ]  # fmt: skip
    assert capsys.readouterr().out.startswith("one\ntwo halves\n")
    print("after")
    assert said.report()["lines"] == report["lines"]


def test_a_flood_is_bounded_and_says_how_much_it_left_out():
    with capture() as said:
        for i in range(10_000):
            print(f"line {i}")
    report = said.report()
    assert report["lines"][-1]["text"] == "line 9999" and len(report["lines"]) == MAX_LINES
    assert report["left_out"] == 10_000 - MAX_LINES
    with capture() as said:
        for _ in range(50):
            print("x" * 3000)
    report = said.report()
    assert sum(len(line["text"]) for line in report["lines"]) <= MAX_BYTES and report["left_out"] == 40


def test_no_secret_of_the_environment_is_kept(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-s3cret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abcdef0123456789")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/etc/token-path")
    with capture() as said:
        print("key s3cret-s3cret and abcdef0123456789 at http://me:hunter2@host/ in /etc/token-path")
    assert said.report()["lines"][0]["text"] == "key *** and *** at http://***@host/ in /etc/token-path"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")  # a word, and no secret
    assert without_secrets("a test") == "a test"
