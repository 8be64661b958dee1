"""Training workers: start them with Ray Train, hear what they measure, end those that hang, let them stop between two
steps."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from infra.types import RunError, StoppedError, UserError
from stages.base import Job
from stages.workers.pulse import Heard, Pulse, Sink
from stages.workers.watch import Naming, Watch

_MAX_FAILURES = 3
"""Times the workers are started again after one died or hung, each time from the last checkpoint."""
_POLL_S = 0.5
_DRAIN_LOOK_S = 5.0
STOP_S = 120.0
"""How long workers may take to make their step and save it when they are to stop (PLAIT_STOP_S); those that have made
no step yet are not waited for. Whoever does not is left to end with the driver."""

Worker = Callable[[dict[str, Any]], None]


def num_that_divide(batch: int, workers: int) -> int:
    """The most of these workers that share a batch evenly."""
    return max(n for n in range(1, max(1, workers) + 1) if batch % n == 0)


def seconds_of(variable: str) -> float | None:
    """A time that the environment sets, in seconds; None where it does not."""
    text = os.environ.get(variable)
    try:
        return float(text) if text else None
    except ValueError:
        raise UserError(f"{variable} is {text!r}: give a number of seconds, or unset it") from None


def watched(config: dict[str, Any]) -> None:
    """What a training worker runs: the stage's worker, whose `config["pulse"]` beats meanwhile."""
    import torch.distributed as dist

    with Pulse(config["sink"], dist.get_rank()) as pulse:
        config["worker"]({**config, "pulse": pulse})


def fit(
    job: Job,
    worker: Worker,
    config: Mapping[str, Any],
    *,
    name: str,
    workers: int,
    steps: int,
    said: Callable[[Mapping[str, float]], str],
    named: Naming | None = None,
) -> None:
    """Run `worker` on so many Ray Train workers until it returns, and meanwhile hand on what it tells its `sink`.

    `name` is the dataset's, `steps` what progress counts to, `said` words a step's metrics, `named` the rows that a
    rank cannot load.
    Workers that die or hang start again, up to three times between two checkpoints, from the last one; those that
    are told to leave (SIGTERM, a machine that drains) save first. Raises RunError after the fourth failure without a
    checkpoint in between, and at once where the workers blamed something; StoppedError where the job was asked to stop.
    """
    job.ray()  # else Ray would start one of its own, whatever the run's address
    while True:
        before = _reached(job)
        one = _Round(job, worker, config, name, workers, named)
        one.follow(steps, said)
        why = one.close(steps)
        reached = _reached(job)
        if why is None:
            return
        if reached <= before:
            raise RunError(f"{why}; no step was saved meanwhile, the same command goes on from step {reached}")
        job.note(f"{why}: what was done is saved, training goes on from step {reached}")


class _Round:
    """One run of Ray Train, from its start until the workers have left."""

    def __init__(
        self, job: Job, worker: Worker, config: Mapping[str, Any], name: str, workers: int, named: Naming | None
    ) -> None:
        import ray

        self._job = job
        self._stop_s = STOP_S if (given := seconds_of("PLAIT_STOP_S")) is None else given
        self._watch = Watch(seconds_of("PLAIT_HANG_S"), named)
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Sink)
        self._sink = actor.remote(name, job.run_id)
        self._ranks: list[Heard] = []
        self._failed: list[BaseException] = []
        self._hung: str | None = None
        self._drained: str | None = None
        self._looked_at = 0.0
        self._name, self._num_workers, self._is_short = name, workers, False
        self._on = "GPU" if ray.cluster_resources().get("GPU", 0) >= workers else "CPU"
        trainer = _trainer(job, {**config, "sink": self._sink, "worker": worker}, name, workers, self._on == "GPU")
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

        try:
            trainer.fit()
        except (TrainingFailedError, RayError) as error:
            self._failed.append(error)

    def follow(self, steps: int, said: Callable[[Mapping[str, float]], str]) -> None:
        """Until the workers have left, or the job is to stop and they had their time."""
        import ray

        alive = True
        while alive:
            self._thread.join(_POLL_S)
            alive = self._thread.is_alive()
            self._ranks = ray.get(self._sink.beats.remote())
            if self._job.stopping():
                self._leave()
                return
            held, pictures, notes = ray.get(self._sink.drain.remote())
            for sentence in notes:
                self._job.note(sentence)
            for step, metrics in held:
                self._job.log(step, metrics)
                self._job.progress(step, steps, said(metrics))
            for name, data in pictures.items():
                self._job.picture(name, data)
            if alive:
                self._end_if_hung()
                self._leave_if_drained()

    def close(self, steps: int) -> str | None:
        """Why the workers left before the last step and may go on, or None where they made it; else raises."""
        import ray

        fault: str | None = ray.get(self._sink.fault.remote())
        ray.kill(self._sink)
        reached = _reached(self._job)
        if self._job.stopping():
            self._job.progress(reached, steps, "stopped")  # raises in its own words
            raise StoppedError(f"training was stopped: the same command goes on from step {reached}")
        if fault is not None:
            raise RunError(f"{fault}; the last good checkpoint is step {reached}, from which the same command goes on")
        if self._failed:
            cause = self._hung or str(self._failed[0]).strip().splitlines()[-1]
            return f"training failed {_MAX_FAILURES + 1} times, last with: {cause}"
        if reached >= steps:
            return None
        told = [f"rank {h.beat.rank} ({h.beat.host}, process {h.beat.pid})" for h in self._ranks if h.beat.leaving]
        if told:
            return f"{', '.join(told)} got SIGTERM"
        return self._drained or "the workers left on their own"

    def _leave(self) -> None:
        """Let the workers save and stop between two steps, all of them at the same one."""
        made_steps = any(h.beat.num_steps for h in self._ranks)
        deadline = time.monotonic() + (self._stop_s if made_steps else 0.0)
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._sink.stop.remote()  # again each time: the actor may have been started anew
            self._thread.join(_POLL_S)

    def _end_if_hung(self) -> None:
        """Say which ranks hold the others up, and end all: Ray Train starts them again from the last checkpoint."""
        if self._ranks and max(h.beat.num_steps for h in self._ranks):
            self._hung = None  # those that run now have made steps: what hung before is over
        if (sentence := self._watch.look(self._ranks)) is None:
            return
        self._hung = sentence
        self._job.note(f"{sentence}; all ranks are ended and start again from step {_reached(self._job)}")
        self._sink.end.remote([(h.beat.host, h.beat.pid) for h in self._ranks])

    def _leave_if_drained(self) -> None:
        """A machine that Ray drains is soon gone: save, and go on without it."""
        now = time.monotonic()
        if now - self._looked_at < _DRAIN_LOOK_S:
            return
        self._looked_at = now
        self._say_if_short()
        going = draining_nodes()
        if found := [h.beat for h in self._ranks if h.beat.node in going]:
            of = ", ".join(str(beat.rank) for beat in found)
            self._drained = f"Ray drains {found[0].host}, where rank {of} was"
            self._sink.stop.remote()

    def _say_if_short(self) -> None:
        """Where machines are gone Ray Train waits for others, for ever and without a word."""
        import ray

        has = int(ray.cluster_resources().get(self._on, 0))
        if has < self._num_workers and not self._is_short:
            self._job.note(f"training waits for machines: it has {self._num_workers} workers, and the cluster {has} {self._on}s: add some, or stop it and run again with cluster.stages.{self._name}.workers={max(1, has)}")  # fmt: skip  # noqa: E501
        self._is_short = has < self._num_workers


def draining_nodes() -> set[str]:
    """Ids of the machines that are being taken away. Ray Train's own `get_preemption_info` is a barrier of all ranks,
    which a step should not wait for."""
    from ray._private import state

    return set(state.state.get_draining_nodes())


def _reached(job: Job) -> int:
    last = job.checkpoints.latest()
    return 0 if last is None else last.step


def _trainer(job: Job, config: dict[str, Any], name: str, workers: int, on_gpu: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from stages.workers.sigterm import LeavingTorchConfig

    return TorchTrainer(
        watched,
        train_loop_config=config,
        torch_config=LeavingTorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(job.scratch.resolve() / "ray-train"),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
