"""Every shape of a graph, every way to fail, early and late: the same command ends with the same rows.

Pairs of (shape, failure) are all there; where it fails goes round, so that every pair of the three is there too.
"""

import os
import shutil
import signal
from itertools import product

import pytest

from infra.folder_bucket import LocalBucket
from infra.types import RunError
from pipelines import gc
from pipelines.ask import Ask
from pipelines.standing import Standing
from tests.conftest import Toy, plait
from tests.faults import shapes

KILLS = ("killed at shard", "killed at staged", "killed at committed", "killed at done")
PLACE = {n: {"shard_rows": 4, "batch_rows": 2} for n in shapes.STAGES}
PAIRS = list(product(shapes.SHAPES, shapes.FAILURES))
CASES = [(shape, failure, (i + i // len(shapes.FAILURES)) % 2) for i, (shape, failure) in enumerate(PAIRS)]
CASES += [(shape, KILLS[i % len(KILLS)], i % 2) for i, shape in enumerate(shapes.SHAPES)]


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_marks, ray):
    """A source, and a root on which files, texts and words stand: what all shapes have in common."""
    folder = tmp_path_factory.mktemp("matrix")
    toy = Toy(folder, toy_marks, ray)
    toy.write("a.txt", "w0 w1 w2 longer0 victim")
    toy.write("b.txt", "w3 w4 w5 longer1 longer2")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    yield toy, {}
    del os.environ["RAY_ADDRESS"]


@pytest.fixture
def toy_of(world, tmp_path, toy_marks, ray, monkeypatch):
    """A toy of a shape on a root of its own over the common source."""
    base, _ = world

    def make(shape, root=tmp_path / "root"):
        monkeypatch.setattr("tests.toy.graph", getattr(shapes, shape))
        if not any(base.root.names("ledger")):
            base.run(Ask(to="words"))
        shutil.copytree(base.root.folder, root)
        toy = Toy(tmp_path, toy_marks, ray, root=LocalBucket(root), source=base.source_bucket)
        run = toy.result
        toy.result = lambda ask=None, tracker=None, **config: run(ask, tracker, stages=PLACE, **config)
        return toy

    return make


def contents(root):
    """Digest and labels of every dataset."""
    standing = Standing(root)
    found = {}
    for name in standing.order():
        labels = sorted(standing.store.scan(standing.snapshot(name), ["label"])["label"].to_pylist())
        found[name] = (standing.done(name)["snapshot"]["digest"], labels)
    return found


def fail(toy, shape, failure, stage, folder):
    """Run until it fails; what the same command then needs."""
    if failure.startswith("killed"):
        at = {"PLAIT_CRASH_AT": f"{stage}:{failure.removeprefix('killed at ')}"}
        where = [f"pipeline=tests.faults.shapes:{shape}", f"source={toy.source_bucket.uri}", "root=root"]
        sizes = [f"cluster.stages.{n}.shard_rows=4" for n in shapes.SHAPES[shape]]
        killed = plait("run", *where, *sizes, "tracking=none", cwd=folder, env=at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        return Ask()
    shapes.flag(failure, stage).touch()
    try:
        if failure in ("transient", "setup"):
            with pytest.raises(RunError):
                toy.run()
        else:
            made = toy.run()[stage]
            victims = 2 if stage == "both" else 1  # a union has the word from either side
            assert made["quarantined"] == (victims if failure == "poison" else 0)
            assert failure == "poison" or not shapes.flag(failure, stage).exists()
    finally:
        shapes.flag(failure, stage).unlink(missing_ok=True)
    return Ask(retry_quarantined=True) if failure == "poison" else Ask()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "failure", "late"), CASES)
def test_whatever_fails_wherever_the_same_command_ends_with_the_same_rows(
    shape, failure, late, world, toy_of, tmp_path
):
    undisturbed = world[1]
    if shape not in undisturbed:
        whole = toy_of(shape, tmp_path / "whole")
        whole.run()
        undisturbed[shape] = contents(whole.root)
    toy = toy_of(shape)
    stage = shapes.SHAPES[shape][-1 if late else 0]
    toy.run(fail(toy, shape, failure, stage, tmp_path))
    assert contents(toy.root) == undisturbed[shape]
    standing = Standing(toy.root)
    for name, dones in standing.all.items():
        published = {d["snapshot"]["version"] for d in dones}
        assert len({d["key"] for d in dones if d["snapshot"] == dones[-1]["snapshot"]}) == 1
        assert standing.store.head(name) == len(published), name  # each commit is one that a `done` names
    assert {(p["state"], p["compute"], p["drop"]) for p in toy.plan().values()} == {("fresh", 0, 0)}
    gc.collect(toy.root, gc.find(toy.root))
    assert gc.find(toy.root) == [] and contents(toy.root) == undisturbed[shape]
