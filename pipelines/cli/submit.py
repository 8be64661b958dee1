"""`plait run --address http://HEAD:8265`, and `plait evaluate`: the same command as a job of Ray, followed from here by
the root alone.

Nothing of the run depends on this process: the driver works on the cluster, the ledger has what it does, and whoever
reads the root can follow and cancel it. The job server is asked only how the job is where the ledger is silent.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.types import PlaitError, RunError, StoppedError, UserError, without_secrets
from pipelines.cli import checkout, show

POLL_S = 2.0
ASK_S = 6.0
"""Between questions to the job server."""
SETTLE_S = 10.0
"""How long the record of a run may come after the end of its job, or after its last sign of life."""
UNHEARD_S = 60.0
"""How long a run may take to begin while the job server does not answer."""
OF_THIS_MACHINE = ("--json", "--detach", "--quiet", "--watch")
_WITH_A_VALUE = ("--address", "--page", "--every")
"""Of this machine too, and the word behind them."""


def submit(made: Any, address: str, detach: bool, as_json: bool) -> None:
    """Submit `plait run` as a job; follow it and end as it ends, or with `detach` return at once."""
    from pipelines.cli import work

    run = _sent(made, address, as_json, looks=not detach)
    if detach:
        show.say(run.how_to_go_on())
        if as_json:
            told = {"address": without_secrets(address), "root": made.root.uri}
            show.emit({"run_id": run.run_id, "job": run.job, **told})
        return
    record = run.followed()
    if record is None:
        raise RunError(f"Ray job {run.job} ended and left no run: see plait status, and the cluster's log of the job")
    work.show_record(made, record, as_json)
    raise SystemExit(record["exit"])


def scored_by(made: Any, address: str) -> dict[str, Any] | None:
    """Submit `plait evaluate` as a job and follow it to its end; None where somebody else had scored it all by then."""
    record = _sent(made, address, False, looks=True).followed()
    if record is not None and not record["ok"]:
        raise RunError(str(record["error"]))
    return record


def _sent(made: Any, address: str, as_json: bool, *, looks: bool) -> _Followed:
    """The command line, submitted; `looks`: whether the root must be readable from here."""
    from infra.jobs import JobServer
    from pipelines.run import new_run_id

    for text in sys.argv[1:]:
        if without_secrets(text) != text:
            raise UserError(f"{without_secrets(text)} holds a secret, and whoever sees the cluster sees its jobs' commands: set it in the cluster's environment, or name the variable in cluster.env")  # fmt: skip  # noqa: E501
    command = ["python", "-m", "pipelines.cli.main", *for_the_cluster(sys.argv[1:]), *_places(made), *_no_address(made)]
    missing = [name for name in made.config.cluster.env if name not in os.environ]
    if missing:
        raise UserError(f"cluster.env names {', '.join(missing)}, not set here: export it, or leave it out")
    server = JobServer(address)
    run = _Followed(made, server, new_run_id(), as_json)
    if looks:
        run.look()  # before anything is sent: whether the root can be read from here
    env = {name: os.environ[name] for name in made.config.cluster.env}
    with tempfile.TemporaryDirectory(prefix="plait-code-") as folder:
        if made.config.cluster.code:
            num_files, num_bytes = checkout.pack(made.config.pipeline, Path(folder))
            show.say(f"sending {num_files} files of code, {num_bytes / 2**20:.1f} MiB")
        code = Path(folder) if made.config.cluster.code else None
        run.job = server.submit(run.run_id, command, sys.argv[1:], code, env)
    show.say(f"submitted to {without_secrets(address)} as Ray job {run.job}: run {run.run_id}")
    return run


def for_the_cluster(arguments: Sequence[str]) -> list[str]:
    """The same command, without what concerns the machine alone on which it was typed."""
    kept: list[str] = []
    before = ""
    for text in arguments:
        name = text.lstrip("+~").partition("=")[0]
        if before not in _WITH_A_VALUE and name not in (*OF_THIS_MACHINE, *_WITH_A_VALUE, "cluster.address"):
            kept.append(text)
        before = text
    return kept


def _no_address(made: Any) -> list[str]:
    """Where a file of conf/ names the job server, the job must not submit itself: on the cluster RAY_ADDRESS counts."""
    from pipelines.cli.compose import compose

    words = [text for text in for_the_cluster(sys.argv[1:])[1:] if text[0] == "~" or ("=" in text and text[0] != "-")]
    named = compose([f"pipeline={made.config.pipeline}", *words]).cluster.address
    return ["cluster.address=null"] if named else []


def _places(made: Any) -> list[str]:
    """Folders as the cluster will find them; one sentence for what only this machine has."""
    config = made.config
    found: list[str] = []
    is_folder = "://" not in (config.storage.root or config.root)
    if is_folder:
        name = "storage.root" if config.storage.root else "root"
        found.append(f"{name}={_shared(made, name, config.storage.root or config.root)}")
    if config.source is not None and "://" not in config.source:
        found.append(f"source={_shared(made, 'source', config.source)}")
    uri = config.tracking.uri or ""
    path = uri.removeprefix("sqlite:///").removeprefix("file://")
    if config.tracking.enabled and uri and "://" not in path:
        _shared(made, "tracking.uri", path)
    elif config.tracking.enabled and not uri and not is_folder:
        raise UserError("tracking.uri is not set, and MLflow's database would lie on the cluster's head alone: give tracking.uri=http://HOST:5000, or tracking=none")  # fmt: skip  # noqa: E501
    return found


def _shared(made: Any, name: str, place: str) -> Path:
    path = Path(os.path.normpath(Path.cwd() / Path(place).expanduser()))  # links are followed there, not here
    if not any(path.is_relative_to(Path(folder)) for folder in made.config.cluster.shared):
        raise UserError(f"{name}={place} is a folder of this machine: give s3://bucket/prefix, or say cluster.shared=[{path}] if every node of the cluster has it there")  # fmt: skip  # noqa: E501
    return path


@dataclass
class _Followed:
    """A submitted run as this machine sees it."""

    made: Any
    server: Any
    run_id: str
    as_json: bool
    job: str = ""

    def look(self) -> Any:
        """The runs of the root; one sentence where it cannot be read from here."""
        from infra.runs import Runs

        try:
            return Runs(self.made.root)
        except (PlaitError, OSError) as error:
            raise RunError(f"the run could not be followed from here ({error}): see that {self.made.root.uri} can be read, or submit with --detach") from error  # fmt: skip  # noqa: E501

    def how_to_go_on(self) -> str:
        """What to type to see more of it, and to stop it."""
        from pipelines.cli.work import root_hint

        at = root_hint(self.made)
        return f"plait logs --follow --run {self.run_id}{at} follows it, plait cancel {self.run_id}{at} stops it"

    def followed(self) -> dict[str, Any] | None:
        """Show what it shows until it ends; its record, or None of a job that found nothing to do. Ctrl-C leaves it
        alone."""
        runs = self.look()
        progress = show.ConsoleProgress()
        try:
            return self._until_ended(runs, progress)
        except KeyboardInterrupt:
            raise StoppedError(f"stopped following, and run {self.run_id} goes on: {self.how_to_go_on()}") from None
        finally:
            progress.stop()

    def _until_ended(self, runs: Any, progress: Any) -> dict[str, Any] | None:
        from pipelines.shown import Mirror

        mirror, silence = Mirror(progress), _Silence(self, runs, progress)
        while True:
            try:
                record = runs.record(self.run_id)
                if shown := runs.shown(self.run_id):
                    mirror.show(shown)
                if record is not None:
                    return {"exit": 0 if record["ok"] else 1, **record}
                is_gone, has_begun = silence.is_final(), runs.has_begun(self.run_id)
            except (PlaitError, OSError) as error:  # it goes on, and we cannot see it
                silence.note(f"the root cannot be read at the moment ({without_secrets(str(error))[:200]})")
                is_gone = has_begun = False
            if is_gone:
                self._gone(has_begun)
                return None
            time.sleep(POLL_S)

    def _gone(self, has_begun: bool) -> None:
        """Raise why it left no record; nothing to raise of a job that ended well without a run."""
        if has_begun:
            again = f"run `{shlex.join(['plait', *sys.argv[1:]])}` again"
            raise RunError(f"run {self.run_id} was killed with Ray job {self.job}; finished shards are kept: {again}, on a new cluster if this one is gone")  # fmt: skip  # noqa: E501
        ended = self.server.ended(self.job)
        if ended.exit_code == 0:
            return
        said = [line.removeprefix("plait: ") for line in ended.said if line.startswith("plait: ")] or ended.said
        why = without_secrets(said[-1]) if said else "its cluster is gone"
        kind = UserError if ended.exit_code == 2 else RunError
        raise kind(f"{why} (Ray job {self.job} ended before its run began)")


class _Silence:
    """What it means that a run has left no record yet."""

    def __init__(self, run: _Followed, runs: Any, progress: Any) -> None:
        self._run, self._runs, self._progress = run, runs, progress
        self._asked = float("-inf")
        self._since: float | None = None
        self._patience_s = SETTLE_S
        self._said: set[str] = set()

    def is_final(self) -> bool:
        """Whether it will leave none: by the job server, asked now and then; where that does not answer, by the run's
        own heartbeat."""
        now = time.monotonic()
        if now - self._asked < ASK_S and self._since is None:
            return False
        self._asked = now
        running = self._run.server.is_running(self._run.job)
        if running is None:
            self.note("the job server does not answer; the run is followed by its ledger")
            running = self._runs.is_living(self._run.run_id)
            self._patience_s = SETTLE_S if self._runs.has_begun(self._run.run_id) else UNHEARD_S
        if running:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since > self._patience_s

    def note(self, sentence: str) -> None:
        """Say it once."""
        if sentence not in self._said:
            self._said.add(sentence)
            self._progress.note(sentence)
