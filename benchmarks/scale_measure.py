"""What benchmarks/scale_out.py stands on and can be measured here in seconds, on one core: no run of its own.

Packs are made by the packer's own writer from pictures of NextFlow's 512 level and texts with random ids, staged and
committed as the pipeline does, and read back by the training loader. Manifests are real ones: Lance's of so many
fragments, and a checkpoint's of the ranks and parameters in question.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from lance.fragment import FragmentMetadata

from infra.commits import publish_full
from infra.folder_bucket import LocalBucket
from infra.store import SnapshotReader, Store, to_table
from infra.types import Snapshot
from models.any_to_any import AnyToAny
from models.layout import Format, Picture, document
from models.tokenizers.scales import NEXTFLOW
from models.vocabulary import Vocabulary
from pipelines.cli.compose import setup
from pipelines.job import JOB_ROWS_PER_FRAGMENT
from stages.pack import Packs, _row
from stages.train.build import trunk_config
from stages.train.checkpoint import _overlaps
from stages.train.engine import MASTER, MOMENTS, Fragment, trained
from stages.train.loader import Loader
from stages.train.stream import Stream
from stages.train.train import Model

SCALES_512 = 16
LAYERS = 28
"""As many parameters, by number, as NextFlow's trunk has."""
BYTES_OF_OPTIMIZER = 4 * len((MASTER, *MOMENTS))
BYTES_OF_WEIGHT = 2
"""A parameter in bf16: fp32 master weight and moments in the ranks' files, the weight itself in rank 0's."""


@dataclass(frozen=True)
class Measured:
    """Seconds are CPU seconds of one core here."""

    write_s: float
    """A token of a pack: documents written, rows made, staged in Lance."""
    stored_bytes: float
    arrow_bytes: float
    row_bytes: float
    """A token: in Lance's files, as Arrow, and as the Python row that the packer holds until a fragment is full."""
    load_s: float
    batch_s: float
    """A token: taken and joined (the prefetch thread); made into tensors (the training thread)."""
    requests: float
    """Reads of a take of one pack."""
    fragment_bytes: float
    open_s: float
    """A fragment in the dataset's manifest; opening it, local disk."""
    order_s: float
    order_requests: float
    """A pack, when a rank begins: its place in the order is read."""
    draw_s: tuple[float, float]
    """A place of a step: in the first epoch, in later ones."""
    entry_bytes: float
    parse_s: float
    unpickle_s: float
    overlap_s: float
    """A stretch in a checkpoint's manifest: its JSON, parsing that, unpickling it; comparing it with another."""
    num_parameters: int
    """By name."""
    sha_gb_s: float
    weight_s: float
    """A first weight."""
    import_s: float


def measured(ranks: int, fragments: int, packs: int, root: Path) -> Measured:
    """Everything, in a scratch folder."""
    torch.set_num_threads(1)
    vocabulary = Vocabulary.compact(151_665, 32_768, text_digest="a" * 64, vision_digest="b" * 64)
    graph = setup(["recipe=nextflow", f"trunk.layers={LAYERS}", "trunk.width=128"]).graph
    stage, packer = graph.node("model").stage, graph.node("packs").stage
    assert isinstance(stage, Model) and isinstance(packer, Packs)
    form = Format(layout=packer.layout, vocabulary=vocabulary)
    data = os.urandom(2**28)
    return Measured(
        **_packs(form, stage, fragments, root),
        **_order(packs, root),
        **_model(stage, form, ranks),
        sha_gb_s=2**28 / 1e9 / _seconds(lambda: hashlib.sha256(data).digest()),
        import_s=_imported_s(),
    )


def _packs(form: Format, stage: Model, fragments: int, root: Path, num: int = 16) -> dict[str, float]:
    """A few packs, written and read; and a manifest of so many fragments."""
    rng, store = np.random.default_rng(0), Store(LocalBucket(root))
    schema = Packs.schema
    drawn = [_drawn(rng) for _ in range(num)]
    began = time.process_time()
    rows = [_pack(parts, n, form) for n, parts in enumerate(drawn)]
    staged = store.stage("packs", rows, schema)
    wrote_s = time.process_time() - began
    tokens = sum(row["num_tokens"] for row in rows)
    tracemalloc.start()
    held = _pack(drawn[0], 0, form)
    row_bytes = tracemalloc.get_traced_memory()[0] / held["num_tokens"]
    tracemalloc.stop()
    version = publish_full(store, "packs", schema, list(staged.fragments), "key.1", 0)
    reader = SnapshotReader(store.bucket, store.snapshot("packs", version), np.arange(num))
    loader = Loader(reader, 1, 0, form, stage.parts)
    loader.passes(0, 0, 1)
    opened = reader._store._taken_from
    assert opened is not None
    opened[1].io_stats_incremental()
    load_s = _seconds(lambda: [loader.passes(step, 0, 1) for step in range(num)])
    requests = opened[1].io_stats_incremental().read_iops / num
    steps = [loader.passes(step, 0, 1)[0] for step in range(num)]
    batch_s = _seconds(lambda: [one.batch(form, stage.parts, 0) for one in steps])
    one = FragmentMetadata.from_json(staged.fragments[0])
    many = lance.LanceDataset.commit(
        str(root / "many.lance"), lance.LanceOperation.Overwrite(store.at("packs").schema, [one] * fragments)
    )
    manifest = next((root / "many.lance" / "_versions").glob("*.manifest"))
    return {
        "write_s": wrote_s / tokens,
        "stored_bytes": sum(staged.files.values()) / tokens,
        "arrow_bytes": to_table(rows, schema).nbytes / tokens,
        "load_s": load_s / tokens,
        "batch_s": batch_s / tokens,
        "row_bytes": row_bytes,
        "requests": requests,
        "fragment_bytes": manifest.stat().st_size / fragments,
        "open_s": _seconds(lambda: lance.dataset(many.uri)) / fragments,
    }


def _drawn(rng: np.random.Generator, room: int = 32_768) -> list[list[Any]]:
    """Texts and pictures of one pack, about the length of NextFlow's budget at its 512 level."""
    grids = tuple((1, side, side) for side in NEXTFLOW[:SCALES_512])
    num = sum(rows * columns for _, rows, columns in grids)
    found: list[list[Any]] = []
    while room > num:
        ids = rng.integers(0, 32_768, num)
        shown = np.where(rng.random(num) < 0.6, rng.integers(0, 32_768, num), ids)  # self-correction (recipes 1.5)
        words = rng.integers(0, 151_665, int(np.clip(rng.lognormal(np.log(600), 1.5), 16, num))).tolist()
        found += [[words[:300], Picture(grids=grids, ids=ids, input_ids=shown)], [words]]
        room -= num + len(words) + len(words[:300])
    return found


def _pack(parts: list[list[Any]], number: int, form: Format) -> dict[str, Any]:
    documents = [document(one, form, None) for one in parts]  # type: ignore[arg-type] # marks of size are off
    row = _row([(one, [bytes(16)], "label") for one in documents], form)
    named = {"key": number.to_bytes(16, "big"), "label": f"pack {number}", "order": number, "phase": "p512"}
    return row | named | {"format": form.to_json(), "flops": 2e15}


def _order(packs: int, root: Path) -> dict[str, Any]:
    """What a rank does before its first step, over so many packs that have nothing but an order; and what it draws."""
    store = Store(LocalBucket(root))
    keys = pa.array([n.to_bytes(16, "big") for n in range(packs)], pa.binary(16))
    columns = {"key": keys, "order": np.random.default_rng(0).permutation(packs)}
    lance.write_dataset(pa.table(columns), store.uri("order"), max_rows_per_file=JOB_ROWS_PER_FRAGMENT)
    snapshot = Snapshot("order", store.uri("order"), 1, "", packs)
    reader = SnapshotReader(store.bucket, snapshot, np.arange(packs))
    began = time.process_time()
    stream = Stream(reader, 1024, 0)
    order_s = time.process_time() - began
    stream.rows(0)
    opened = reader._store._taken_from
    assert opened is not None
    first, later = (_seconds(lambda at=at: stream.rows(at)) / 1024 for at in (3, packs // 1024 + 3))
    requests = opened[1].io_stats_incremental().read_iops / packs
    return {"order_s": order_s / packs, "order_requests": requests, "draw_s": (first, later)}


def _model(stage: Model, form: Format, ranks: int) -> dict[str, Any]:
    """A checkpoint's manifest under ZeRO-3, where every rank has a stretch of every parameter; first weights."""
    model = AnyToAny(trunk_config(stage, form), stage.parts, form, 0 if stage.parts.code_vectors == "drawn" else 8)
    vectors = torch.zeros(form.vocabulary.codebook_size, 8) if stage.parts.code_vectors == "codebook" else None
    weight_s = _seconds(lambda: model.initialise(0, vectors)) / sum(p.numel() for p in model.parameters())
    names = list(trained(model))
    size = 233_046_016 // ranks  # places as long as the real ones: they are part of the JSON
    holds = [{f"{name}@{rank * size}": [rank * size, (rank + 1) * size] for name in names} for rank in range(ranks)]
    files = {f"optimizer-{rank:05d}-of-{ranks:05d}.safetensors": {"bytes": 10**8, "sha256": "a" * 64, "holds": own}
             for rank, own in enumerate(holds)}  # fmt: skip
    text = json.dumps({"files": files}, indent=1, sort_keys=True)
    told = pickle.dumps(next(iter(files.values())))
    wanted = {name: Fragment(name, 0, size, {}) for name in names}
    entries = ranks * len(names)
    compare = lambda: any(_overlaps(wanted, key, at) for key, at in holds[1].items())  # noqa: E731
    return {
        "entry_bytes": len(text) / entries,
        "parse_s": _seconds(lambda: json.loads(text)) / entries,
        "unpickle_s": _seconds(lambda: [pickle.loads(told) for _ in range(ranks)]) / entries,
        "overlap_s": _seconds(compare) / len(names),
        "num_parameters": len(names),
        "weight_s": weight_s,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Of a core, whatever else the machine does."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _imported_s() -> float:
    """Of the modules that a worker imports."""
    code = "import stages.train.loop, deepspeed, ray.train.torch, time; print(time.process_time())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(told.stdout.split()[-1])
