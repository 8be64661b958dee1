"""What somebody sees who types `plait` for the first time, and somebody whose terminal is a log file."""

import re

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli import welcome
from pipelines.cli.main import app
from tests.conftest import plait

TOY = ("pipeline=tests.toy:graph", "source=src", "root=data", "tracking=none")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text("one two bad1")
    return tmp_path


def test_plait_alone_says_what_to_do_in_words_that_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert welcome.say() == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 100 for line in said.splitlines())
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"^  plait (\w+)", said, re.MULTILINE)
    assert named[0] == "run" and set(named) <= set(verbs)
    (tmp_path / "plait-data" / "ledger").mkdir(parents=True)
    welcome.say()
    assert "goes on with it" in capsys.readouterr().out


def test_every_verb_says_in_one_line_what_it_does():
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    said = CliRunner().invoke(app, ["--help"], terminal_width=80).stdout.split("Commands:")[1].strip().splitlines()
    assert [line.split()[0] for line in said] == list(verbs)
    assert all(line.endswith(".") and not line.endswith("...") for line in said), said


@pytest.mark.slow
def test_a_run_ends_with_three_things_to_look_at_and_quiet_with_one_line(folder, near):
    done = plait("run", *TOY, cwd=folder, env=near)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert [line.split(" root=")[0] for line in told[-3:]] == ["plait ui", "plait status", "plait quarantine"]
    assert all(len(line) <= 100 and "\x1b" not in line for line in (*told, *done.stderr.splitlines()))
    (folder / "src" / "b.txt").write_text("three four")
    quiet = plait("run", *TOY, "--quiet", cwd=folder, env=near)
    assert quiet.returncode == 0 and not quiet.stderr.strip()
    (line,) = quiet.stdout.splitlines()
    assert re.fullmatch(r"run \S+: \d+ of \d+ stages made, 1 units in quarantine", line)
    wrong = plait("run", *TOY, "--quiet", "lengths.nonsense=1", cwd=folder, env=near)
    assert wrong.returncode == 2 and wrong.stderr.startswith("plait: ") and not wrong.stdout
