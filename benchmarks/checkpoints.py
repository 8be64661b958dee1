"""Checkpoints measured: what saving every 50 steps costs the training of the tiny Emu3.

    python -m benchmarks.checkpoints [--root ROOT] [--runs 5] [--ranks 1 2] [--steps 100] [--every 50]

ROOT is the root of a `plait run recipe=emu3`; without one, `plait run --to packs` makes it first (minutes). Rank
processes of one thread each run the trainer's own loop (stages/train/loop.py) under ZeRO-2, without Ray. A round has
four trainings over the same packs, one after the other in the same processes; all must end at the same loss:

    none            no checkpoint but one behind the last step
    asynchronous    ours: copies, then files, their SHA-256 and their upload to a folder in a thread
    torch.save      in the same place of the loop: rank 0's model.state_dict(), every rank's optimizer.state_dict()
    torch DCP       torch.distributed.checkpoint.async_save of the same tensors, in a process group of its own

All write to the same disk and end in fsync. The first 10 steps and what follows the last measured one do not count. Of
each, beside the time of a step, in percent or as it says:

    cost            time of all measured steps over that of "none", less 1
    around a save   what the step that saves and the two behind it take longer, over the time of `every` steps; by how
                    much the other steps were slower or faster than in "none" is taken out (a machine's drift)
    held            seconds in which a save keeps rank 0 from training, over the time of `every` steps
    told            the mean, over its reports of ten steps, of `saving_share`, as the trainer logs it
    written         from the beginning of a save until rank 0's files are there
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed import checkpoint as dcp

from benchmarks.loader import made_root, packs_of
from benchmarks.measure import machine, row
from infra.checkpoints import CheckpointFolder
from infra.folder_bucket import LocalBucket
from models.layout import Format
from pipelines.cli.compose import setup
from stages.base import Training
from stages.train.checkpoint import copied
from stages.train.engine import Engine
from stages.train.train import LOG_EVERY, Model
from stages.workers.saver import Saver

WARM_UP = 10
BEHIND = 2
"""Steps behind the one that saves that may still feel it."""
WAYS = ("none", "asynchronous", "torch.save", "torch DCP")


@dataclass
class Save:
    """One save, as rank 0 saw it."""

    step: int
    began: float
    held_s: float = 0.0
    written: float = 0.0


@dataclass
class Run:
    """One training, as rank 0 saw it."""

    began: dict[int, float] = field(default_factory=dict)
    """When each step did."""
    saves: list[Save] = field(default_factory=list)
    told: dict[int, dict[str, float]] = field(default_factory=dict)
    save_bytes: float = 0.0
    """Of one save of all ranks."""

    def step_s(self, step: int) -> float:
        """Of a step, with what was saved behind it."""
        return self.began[step + 1] - self.began[step]

    def written(self) -> None:
        """Files of the save that was begun last are there."""
        self.saves[-1].written = time.monotonic()


@dataclass(frozen=True)
class Plan:
    """What the ranks do."""

    root: str
    stage: Model
    runs: int
    steps: int
    every: int
    folder: Path

    @property
    def measured(self) -> range:
        """Steps that count."""
        return range(WARM_UP + 1, WARM_UP + self.steps + 1)

    def stage_of(self, way: str) -> Model:
        """The model, one step longer than what counts: a last checkpoint is not written beside training."""
        steps = self.measured.stop
        return replace(self.stage, steps=steps, checkpoint_every=steps if way == "none" else self.every, keep=None)


@dataclass(frozen=True)
class TimedFolder(CheckpointFolder):
    """Checkpoints that say when a rank's files are there."""

    written: Callable[[], None]

    def upload(self, target: str, folder: Path) -> dict[str, Any]:
        """See CheckpointFolder."""
        files = super().upload(target, folder)
        self.written()
        return files


Given = Callable[[], tuple[Engine, Mapping[str, Any]]]
"""What there is to save, to those that copy it in ways of their own."""


class TorchSave:
    """`torch.save`, while training waits. The same methods as the trainer's saver."""

    busy = False

    def __init__(self, folder: Path, written: Callable[[], None]) -> None:
        self._folder, self._written = folder, written
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int, given: Given, facts: Mapping[str, Any]) -> None:
        """All of a save."""
        engine, trainer = given()
        state = {"optimizer": engine.optimizer.state_dict(), "trainer": trainer, "facts": facts}
        if dist.get_rank() == 0:
            state["model"] = engine.model.state_dict()
        with (self._folder / f"step-{step}-{dist.get_rank()}.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        self._written()
        dist.barrier()  # a checkpoint is whole when all ranks' files are

    def ended(self) -> float:
        """Nothing goes on beside training."""
        return 0.0

    def finish(self) -> None:
        """Nothing goes on beside training."""


class TorchDcp:
    """`torch.distributed.checkpoint.async_save`. The same methods as the trainer's saver."""

    def __init__(self, folder: Path, written: Callable[[], None]) -> None:
        self._folder, self._written = folder, written
        self._group: Any = dist.new_group(backend="gloo")  # its thread's collectives must not mix with training's
        self._save: Future[Any] | None = None

    def begin(self, step: int, given: Given, facts: Mapping[str, Any]) -> None:
        """Copy and start to write."""
        engine, trainer = given()
        state: dict[str, Any] = {"model": engine.model.state_dict(), "trainer": dict(trainer), "facts": dict(facts)}
        for number, held in enumerate(engine.optimizer.state.values()):
            for name, tensor in held.items():
                state[f"optimizer.{dist.get_rank()}.{number}.{name}"] = tensor
        found: Any = dcp.async_save(state, checkpoint_id=self._folder / f"step-{step}", process_group=self._group)
        found.add_done_callback(lambda _: self._written())
        self._save = found

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._save is not None

    def ended(self) -> float:
        """1 where this rank's files are there."""
        return float(self._save is not None and self._save.done())

    def finish(self) -> None:
        """Wait until they are there."""
        assert self._save is not None
        self._save.result()
        self._save = None


class Timed:
    """Stands where the trainer's saver stands, and keeps what each save took."""

    def __init__(self, run: Run, way: str, folder: Path, *given: Any) -> None:
        kinds: dict[str, Callable[[], Any]] = {
            "torch.save": lambda: TorchSave(folder, run.written),
            "torch DCP": lambda: TorchDcp(folder, run.written),
        }
        self._run, self._inner = run, kinds.get(way, lambda: Saver(*given))()
        self.held_s = 0.0

    def begin(self, step: int, *given: Any) -> None:
        """See Saver."""
        self._run.saves.append(Save(step, time.monotonic()))
        self._held(lambda: self._inner.begin(step, *given))

    def finish(self) -> str | None:
        """See Saver."""
        return self._held(self._inner.finish)

    @property
    def busy(self) -> bool:
        """See Saver."""
        return self._inner.busy

    def ended(self) -> float:
        """See Saver."""
        return self._inner.ended()

    def _held(self, does: Callable[[], str | None]) -> str | None:
        began = time.monotonic()
        trouble = does()
        took = time.monotonic() - began
        self.held_s += took
        self._run.saves[-1].held_s += took
        return trouble


class Pulse:
    """Writes down when steps begin, and tells nobody."""

    def __init__(self, run: Run) -> None:
        self._run, self.step = run, 0

    def at(self, step: int, what: str, rows: Any = ()) -> None:
        """See stages.workers.pulse."""
        self.step = step
        if what == "loading":
            self._run.began[step] = time.monotonic()

    def wish(self) -> float:
        """It never is to stop."""
        return 0.0


def train(plan: Plan, way: str, number: int) -> Run:
    """One training on this rank."""
    from stages.train import rank
    from stages.train.loop import train_worker

    run, folder = Run(), plan.folder / f"{way} {number}"
    rank.Saver = partial(Timed, run, way, folder)  # type: ignore[assignment, misc]
    own = way in ("torch.save", "torch DCP")
    rank.copied = (lambda engine, step, trainer: (engine, trainer)) if own else copied  # type: ignore[assignment]
    packs = packs_of(plan.root)
    sink = SimpleNamespace(
        add=SimpleNamespace(remote=lambda step, metrics: run.told.update({step: metrics})),
        note=SimpleNamespace(remote=print),
        blame=SimpleNamespace(remote=print),
    )
    train_worker({
        "stage": plan.stage_of(way), "training": Training(), "packs": packs, "log_every": LOG_EVERY, "profile": False,
        "form": Format.from_json(packs.take([0], ["format"])["format"][0].as_py()), "code_vectors": None,
        "checkpoints": TimedFolder(LocalBucket(folder), "checkpoints", run.written), "sink": sink, "pulse": Pulse(run),
    })  # fmt: skip
    dist.barrier()
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    run.save_bytes = files / len(run.saves)
    return run


def work(rank: int, world: int, plan: Plan, found: Any) -> None:
    """One rank process: all trainings of all rounds."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}  # as Ray Train does
    store = dist.FileStore(str(plan.folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    import ray
    import ray.train.torch

    ray.get = lambda value: value  # what `give_up` waits for
    ray.train.torch.get_device = lambda: torch.device("cpu")
    rounds = [{way: train(plan, way, number) for way in WAYS} for number in range(plan.runs)]
    if rank == 0:
        found.put(rounds)
    dist.barrier()
    dist.destroy_process_group()


def measure(plan: Plan, world: int) -> list[dict[str, Run]]:
    """The rounds, on so many ranks."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    ranks = [context.Process(target=work, args=(rank, world, plan, found)) for rank in range(world)]
    for process in ranks:
        process.start()
    rounds = found.get()
    for process in ranks:
        process.join()
    last = plan.measured.stop
    for number, ways in enumerate(rounds):
        losses = {way: run.told[last]["loss"] for way, run in ways.items()}
        assert len(set(losses.values())) == 1, f"round {number} did not do the same work: {losses}"
    return rounds


def figures(plan: Plan, none: Run, run: Run) -> dict[str, float]:
    """What one training says beside the one without checkpoints of its round; see the head of this file."""
    whole = sum(run.step_s(step) for step in plan.measured)
    bare = sum(none.step_s(step) for step in plan.measured)
    told = {"step": 1e3 * whole / plan.steps}
    saves = [save for save in run.saves if save.step in plan.measured]
    if not saves:
        return told
    near = {step for save in saves for step in range(save.step, save.step + BEHIND + 1) if step in plan.measured}
    far = [step for step in plan.measured if step not in near]
    drift = sum(run.step_s(step) for step in far) / sum(none.step_s(step) for step in far)
    longer = sum(run.step_s(step) / drift - none.step_s(step) for step in near) / len(saves)
    between = plan.every * bare / plan.steps
    held = statistics.mean(save.held_s for save in saves)
    written = statistics.mean(save.written - save.began for save in saves)
    shares = [run.told[step]["saving_share"] for step in plan.measured if step % LOG_EVERY == 0]
    return told | {
        "cost": 100 * (whole / bare - 1),
        "around a save": 100 * longer / between,
        "around a save, each": 1e3 * longer,
        "held": 100 * held / between,
        "held, each": 1e3 * held,
        "told": 100 * statistics.mean(shares),
        "written": 1e3 * written,
        "written, GB/s": run.save_bytes / written / 1e9,
    }


UNITS = {"step": "ms", "around a save, each": "ms", "held, each": "ms", "written": "ms", "written, GB/s": "GB/s"}


def report(plan: Plan, world: int, rounds: Sequence[Mapping[str, Run]]) -> None:
    """Print all figures of so many ranks."""
    of_way = {way: [figures(plan, ways["none"], ways[way]) for ways in rounds] for way in WAYS}
    print(f"\n{world} rank(s), {len(rounds)} round(s) of {plan.steps} steps, a save every {plan.every}")
    bare = [one["step"] for one in of_way["none"]]
    for way, found in of_way.items():
        print(f"{way}: {rounds[0][way].save_bytes / 1e6:.1f} MB a save")
        for name in found[0]:
            values = [one[name] for one in found]
            print(row(f"    {name}", values, UNITS.get(name, "%"), bare if name == "step" else None))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50)
    args = parser.parse_args()
    if args.steps < args.every or args.every < BEHIND + 2 or args.steps < LOG_EVERY:
        parser.error(f"give --every {BEHIND + 2} or more, and as many --steps, at least {LOG_EVERY}")
    print(machine("torch", "deepspeed"))
    stage = setup(["recipe=emu3"]).graph.node("model").stage
    assert isinstance(stage, Model)
    root = args.root or made_root("emu3")
    for world in args.ranks:
        with tempfile.TemporaryDirectory(prefix="plait-checkpoints-") as folder:
            plan = Plan(root, stage, args.runs, args.steps, args.every, Path(folder))
            report(plan, world, measure(plan, world))


if __name__ == "__main__":
    main()
