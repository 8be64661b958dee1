"""Training workers: start them with Ray Train, hear what they measure, stop them between two steps. Not a stage."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from infra.types import RunError, StoppedError
from stages.base import Job

_MAX_FAILURES = 3
"""Times the workers are started again after one died, each time from the last checkpoint."""
_POLL_S = 0.5
_STOP_S = 8.0
"""How long workers may take to stop between two steps before they are left to end with the driver, as they are when
they have not begun to step."""
ASK_EVERY_S = 1.0


class Sink:
    """A Ray actor between rank 0 and the driver: holds what was measured, and the wish to stop."""

    def __init__(self) -> None:
        self._held: list[tuple[int, dict[str, float]]] = []
        self._pictures: dict[str, bytes] = {}
        self._stopping = False
        self._fault: str | None = None

    def blame(self, sentence: str) -> None:
        """Why the workers left before the last step."""
        self._fault = self._fault or sentence

    def fault(self) -> str | None:
        """What was blamed, if anything."""
        return self._fault

    def stop(self) -> None:
        """From now on the workers are to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they are to stop."""
        return self._stopping

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        self._held.append((step, metrics))

    def show(self, name: str, png: bytes) -> None:
        """Keep the newest picture of a name."""
        self._pictures[name] = png

    def drain(self) -> tuple[list[tuple[int, dict[str, float]]], dict[str, bytes]]:
        """Hand out and forget."""
        held, self._held = self._held, []
        pictures, self._pictures = self._pictures, {}
        return held, pictures


class StopWish:
    """Whether the driver wants the training to stop; asked about once a second, without waiting for the answer."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._asked: Any = None
        self._since = time.monotonic()

    def known(self) -> float:
        """1 where the last answer was yes, else 0 (always 0 on ranks without a sink)."""
        import ray

        if self._sink is None:
            return 0.0
        if self._asked is None:
            if time.monotonic() - self._since >= ASK_EVERY_S:
                self._asked = self._sink.stopping.remote()
            return 0.0
        if not ray.wait([self._asked], timeout=0)[0]:
            return 0.0
        answer: Any = ray.get(self._asked)
        self._asked, self._since = None, time.monotonic()
        return float(answer)


def num_that_divide(batch: int, workers: int) -> int:
    """The most of these workers that share a batch evenly."""
    return max(n for n in range(1, max(1, workers) + 1) if batch % n == 0)


def fit(
    job: Job,
    worker: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    name: str,
    workers: int,
    steps: int,
    said: Callable[[Mapping[str, float]], str],
) -> None:
    """Run `worker` on so many Ray Train workers until it returns, and meanwhile hand on what it tells its `sink`.

    `steps` is what progress counts to, `said` words a step's metrics. A worker that dies: all start again, up to three
    times, from the last checkpoint. Raises RunError after the fourth, and at once where the workers blamed something;
    StoppedError where the job was asked to stop.
    """
    import ray
    from ray.exceptions import RayError

    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Sink)
    sink = actor.remote()
    failed: list[BaseException] = []
    trainer = _trainer(job, worker, {**config, "sink": sink}, name, workers)

    def run() -> None:
        from ray.train import TrainingFailedError

        try:
            trainer.fit()
        except (TrainingFailedError, RayError) as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    alive, heard = True, False
    while alive:
        thread.join(_POLL_S)
        alive = thread.is_alive()
        if job.stopping():
            _leave(thread, sink, _STOP_S if heard else 0.0)
            break
        held, pictures = ray.get(sink.drain.remote())
        for step, metrics in held:
            heard = True
            job.log(step, metrics)
            job.progress(step, steps, said(metrics))
        for title, png in pictures.items():
            job.picture(title, png)
    fault: str | None = ray.get(sink.fault.remote())
    ray.kill(sink)
    reached = getattr(job.checkpoints.latest(), "step", 0)
    if job.stopping():
        job.progress(reached, steps, "stopped")  # raises in its own words
        raise StoppedError("training was stopped: the same command goes on from the last checkpoint")
    if fault is not None:
        raise RunError(f"{fault}; the last good checkpoint is step {reached}, from which the same command goes on")
    if failed:
        cause = str(failed[0]).strip().splitlines()[-1]
        raise RunError(
            f"training failed {_MAX_FAILURES + 1} times, last with: {cause}; the same command goes on from step"
            f" {reached}"
        ) from failed[0]


def _trainer(
    job: Job, worker: Callable[[dict[str, Any]], None], config: dict[str, Any], name: str, workers: int
) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = ray.cluster_resources().get("GPU", 0) >= workers
    return TorchTrainer(
        worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(job.scratch.resolve() / "ray-train"),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )


def _leave(thread: threading.Thread, sink: Any, wait_s: float) -> None:
    """Let the workers stop between two steps, all of them at the same one; what is saved is kept."""
    deadline = time.monotonic() + wait_s
    while thread.is_alive() and time.monotonic() < deadline:
        sink.stop.remote()  # again each time: the actor may have been started anew
        thread.join(_POLL_S)
