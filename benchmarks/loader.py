"""The loader measured: packs and tokens a second out of Lance, beside what the trainer takes.

    python -m benchmarks.loader [--root ROOT] [--recipe nextflow] [--runs 5] [--steps 10] [--global-batch 4]

ROOT is the root of a `plait run` of the recipe; without one, `plait run --to packs` makes it first, from the sample
corpus (minutes). Its last version of the packs is read, by position, as in training. One process, one CPU thread for
torch. In turn, over the same steps:

    loader              rows of a step out of Lance, joined, places derived, tensors with noise: nothing beside
    trainer             forward, backward, AdamW of the tiny trunk (conf/scale/tiny.yaml) on steps loaded before
    together            the trainer, each step loaded when it is asked for
    together, in advance    the same with `Prefetch`

The ratio is the loader's rate to the trainer's: how many such trainers one loader feeds. The stall share is the part
of the time in which the trainer waits for its data. Targets: 20, and under 1 % in advance.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

import torch

from benchmarks.measure import in_turn, machine, row
from infra.folder_bucket import LocalBucket
from infra.store import SnapshotReader, Store
from models.any_to_any import AnyToAny
from models.batch import Batch
from models.layout import Format
from pipelines.cli.compose import setup
from stages.base import Reader
from stages.train.build import trunk_config
from stages.train.engine import parameter_groups
from stages.train.loader import Loader
from stages.train.train import Model
from stages.workers.prefetch import Prefetch

Step = list[tuple[Batch, float, int]]
"""Of each pass its tensors, the weight of its tokens and its number of pictures."""


def packs_of(root: str) -> SnapshotReader:
    """The last version of a root's packs."""
    bucket = LocalBucket(root)
    store = Store(bucket)
    return SnapshotReader(bucket, store.snapshot("packs", store.head("packs")), None)


def made_root(recipe: str) -> str:
    """A new root with the packs of the sample corpus, by the pipeline itself."""
    root = tempfile.mkdtemp(prefix="plait-loader-")
    command = ["run", "--to", "packs", f"root={root}", f"recipe={recipe}", "tracking=none"]
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", *command], check=True)
    return root


class Trainer:
    """The tiny model of a recipe and its optimizer, as the training stage makes them, without DeepSpeed."""

    def __init__(self, stage: Model, packs: Reader) -> None:
        self.stage = stage
        self.form = Format.from_json(packs.take([0], ["format"])["format"][0].as_py())
        self.loader = Loader(packs, stage.global_batch, stage.seed, self.form, stage.parts)
        vectors = torch.randn(self.form.vocabulary.codebook_size, 8, generator=torch.Generator().manual_seed(0))
        self.model = AnyToAny(trunk_config(stage, self.form), stage.parts, self.form, 8)
        self.model.initialise(0, vectors if len(vectors) else None)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, stage), lr=1e-4)

    def load(self, step: int) -> Step:
        """A step's tensors, as one rank of one gets them."""
        passes = self.loader.passes(step, 0, 1)
        return [(p.batch(self.form, self.stage.parts, self.stage.seed), p.weight, p.num_pictures) for p in passes]

    def learn(self, step: Step) -> None:
        """Forward, backward, AdamW."""
        divisors = torch.tensor([sum(w for _, w, _ in step), max(1.0, sum(n for _, _, n in step))])
        for batch, _, _ in step:
            self.model(batch, divisors).total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learn_all(self, steps: Iterable[Step]) -> int:
        """Every step; places learnt."""
        places = 0
        for step in steps:
            self.learn(step)
            places += places_of(step)
        return places


def places_of(step: Step) -> int:
    """Places in the trunk."""
    return sum(sum(batch.lengths) for batch, _, _ in step)


def measure(trainer: Trainer, runs: int, steps: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Places a second of every way, and of both ways together the share of the time that the trainer waited."""
    stalls: dict[str, list[float]] = {"stall share": [], "stall share in advance": []}

    def first(number: int) -> int:
        return number * steps  # other packs each round, as in training

    def alone(number: int) -> float:
        started, places = time.perf_counter(), 0
        for step in range(first(number), first(number) + steps):
            places += places_of(trainer.load(step))
        return places / (time.perf_counter() - started)

    def learning(number: int) -> float:
        loaded = [trainer.load(step) for step in range(first(number), first(number) + steps)]
        started = time.perf_counter()
        return trainer.learn_all(loaded) / (time.perf_counter() - started)

    def together(number: int) -> float:
        waited, places, started = 0.0, 0, time.perf_counter()
        for step in range(first(number), first(number) + steps):
            asked = time.perf_counter()
            loaded = trainer.load(step)
            waited += time.perf_counter() - asked
            places += trainer.learn_all([loaded])
        wall = time.perf_counter() - started
        stalls["stall share"].append(waited / wall)
        return places / wall

    def in_advance(number: int) -> float:
        with Prefetch(trainer.load, first(number), first(number) + steps) as ready:
            trainer.learn(next(ready))  # nothing can be ready before the first
            ready.stalled_s, started = 0.0, time.perf_counter()
            places = trainer.learn_all(ready)
            wall = time.perf_counter() - started
            stalls["stall share in advance"].append(ready.stalled_s / wall)
        return places / wall

    ways = {"loader": alone, "trainer": learning, "together": together, "together, in advance": in_advance}
    figures = in_turn(ways, runs, warm_ups)
    return figures | {name: shares[warm_ups:] for name, shares in stalls.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root")
    parser.add_argument("--recipe", default="nextflow")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--global-batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("torch", "pylance"))
    stage = setup([f"recipe={args.recipe}", f"model.global_batch={args.global_batch}"]).graph.node("model").stage
    assert isinstance(stage, Model)
    packs = packs_of(args.root or made_root(args.recipe))
    trainer = Trainer(stage, packs)
    figures = measure(trainer, args.runs, args.steps)
    mean = sum(places_of(trainer.load(step)) for step in range(10)) / (10 * args.global_batch)
    print(f"{len(packs)} packs of {mean:,.0f} places on average, {args.global_batch} a step")
    for name in ("loader", "trainer", "together", "together, in advance"):
        print(row(name, figures[name], "tok/s", figures["trainer"]))
    print(row("loader", [rate / mean for rate in figures["loader"]], "packs/s"))
    for name in ("stall share", "stall share in advance"):
        print(row(name, [100 * share for share in figures[name]], "%"))
    ratio = statistics.median(figures["loader"]) / statistics.median(figures["trainer"])
    print(f"one loader feeds {ratio:.1f} such trainers (target 20)")


if __name__ == "__main__":
    main()
