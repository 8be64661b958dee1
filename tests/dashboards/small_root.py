"""A root of everything that the explorer shows, a few rows each: written at once, with hostile texts among them."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.planted import Planted, key_of, keys_of, only_parents
from infra.bucket import Bucket
from infra.checkpoints import CheckpointFolder
from infra.ledger import dumps, me
from infra.types import now_utc
from stages import frames
from stages.caption.caption import Captions
from stages.clip import Clips
from stages.evaluate import generations, verdicts
from stages.evaluate.marks import Marks
from stages.filter.score import Scores
from stages.ingest import Files, Images, Videos
from stages.pack import Packs
from stages.tokenizer.tokenizer import Tokenizer
from stages.train.train import Model

NUM_IMAGES = 11
NUM_CLIPS = NUM_IMAGES + 1
"""The last one is a film."""
SCRIPT = "<script>window.owned = true</script> a red circle"
ODD_NAME = "stills/<img src=x onerror='window.owned=true'>.png"
SECRET = "s3cr3t-of-the-house"
GOING = "20260102T000000-000000002"
SELECT = {"quality": "quality >= 2", "size": "short_side >= 96"}
CAPTIONS = [
    SCRIPT,
    'it\'s 100 % "odd"; drop_table',
    *(f"a blue square number {i}" for i in range(2, 9)),
    "a film of a red star",
]


def png(number: int) -> bytes:
    """A picture of one colour."""
    return frames.to_png(np.full((48, 64, 3), (20 * number % 255, 90, 160), np.uint8))


def film(num_frames: int = 12) -> bytes:
    """A short H.264 film."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(num_frames):
            picture = np.full((64, 96, 3), (10 * i, 60, 200), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return sink.getvalue()


def plant(place: Path | Bucket) -> Planted:
    """All of it."""
    root = Planted(place)
    _curate(root)
    _train(root)
    _evaluate(root)
    root.end_run(
        [
            "run",
            f"root={root.bucket.uri}",
            "tracking=none",
            f"captions.endpoint=http://u:{SECRET}@host/v1",
            "--limit",
            "9",
        ]
    )
    return root


def _curate(root: Planted) -> None:
    names = [ODD_NAME, *(f"stills/{i:02}.png" for i in range(1, NUM_IMAGES)), "films/a.mp4"]
    units = keys_of("digests", len(names))
    kinds = ["image"] * NUM_IMAGES + ["video"]
    root.put(Files, {"label": names, "path": names, "unit": units, "kind": kinds})
    of_images, of_film = units.slice(0, NUM_IMAGES), units.slice(NUM_IMAGES)
    root.put(Images, {"label": names[:NUM_IMAGES], "parents": only_parents(of_images)}, {"files": "rows"}, unit="unit")
    fault = {"state": "quarantined", "attempt": 1, "error_class": "BadRow", "error": "Traceback: <b>cut short</b>"}
    left = [
        {"unit": f"{i:032x}", "label": f"films/bad{i}.mp4", "reason": f"It is cut short at frame {i}."} | fault
        | {"trace_digest": "e2e63bf291178cf2"}
        for i in range(3)
    ]  # fmt: skip
    root.put(Videos, {"label": ["films/a.mp4"], "parents": only_parents(of_film)}, {"files": "rows"}, left, unit="unit")
    parents = pa.concat_arrays([keys_of("images", NUM_IMAGES), keys_of("videos", 1)])
    clips = {"label": names, "parents": only_parents(parents), "source_kind": kinds, "encoding": kinds}
    clips |= {
        "num_frames": [1] * NUM_IMAGES + [12],
        "fps": [None] * NUM_IMAGES + [8.0],
        "held_out": [False] * NUM_CLIPS,
    }
    clips |= {"width": [64] * NUM_CLIPS, "media": [*(png(i) for i in range(NUM_IMAGES)), film()]}
    root.put(Clips, clips, {"images": "rows", "videos": "rows"})
    of_clips = keys_of("clips", NUM_CLIPS)
    at = list(range(NUM_CLIPS))[::-1]  # scores do not lie in the order of their clips
    scores = {"quality": [float(i) for i in at], "flow": [0.5 if i == NUM_IMAGES else None for i in at]}
    scores |= {"short_side": [90 if i == 5 else 128 for i in at], "label": [names[i] for i in at]}
    root.put(Scores, scores | {"parents": only_parents(of_clips.take(pa.array(at)))}, {"clips": "rows"})
    gone = {0: "quality", 1: "quality", 5: "size"}
    kept = [i for i in range(NUM_CLIPS) if i not in gone]
    left = [{"unit": of_clips[i].as_py().hex(), "label": names[i], "state": "filtered", "reason": why, "error": None, "attempt": 0, "by": "select", "error_class": None, "trace_digest": None} for i, why in gone.items()]  # fmt: skip  # noqa: E501
    texts = [CAPTIONS[min(n, len(CAPTIONS) - 1)] if i < NUM_IMAGES else CAPTIONS[-1] for n, i in enumerate(kept)]
    told = {"label": [names[i] for i in kept], "parents": only_parents(of_clips.take(pa.array(kept))), "text": texts}
    told |= {"captioner": ["pixels"] * len(kept)}
    root.put(Captions, told, {"clips": "rows", "scores": "select"}, left, SELECT, {"num_frames": 8})


def _train(root: Planted) -> None:
    key = key_of("tokenizer", ["clips"])
    one = _checkpoint(root, "tokenizer", key, 20)
    root.put(
        Tokenizer,
        {"label": ["step 20"], "step": [20], "kind": ["vq"], "psnr": [27.5], "ssim": [0.91], **one},
        {"clips": "rows"},
    )
    folder = root.ledger.folder("tokenizer", key)
    folder.put_bytes("picture.1.reconstructions.png", png(9))
    folder.put("metrics.1", {"steps": [[i, {"l1": 1.0 / i}, i] for i in (10, 20)]})
    members = keys_of("captions", 9)
    text = {"len": 10, "kind": 0, "document": 0, "rows": 0, "columns": 0, "scale": 0, "num_scales": 0}
    picture = text | {"len": 16, "kind": 2, "rows": 4, "columns": 4}
    segments = [[text, text, picture, text | {"document": 1}][: 4 - i % 2] for i in range(6)]
    parents = [[members[i].as_py(), members[i + 1].as_py()] for i in range(6)]
    packs = {"label": [f"pack {i}" for i in range(6)], "parents": pa.array(parents, pa.list_(pa.binary(16)))}
    packs |= {"segments": segments, "order": [5, 4, 3, 2, 1, 0], "flops": [1e9 * (1 + i % 3) for i in range(6)]}
    root.put(Packs, packs | {"num_tokens": [sum(s["len"] for s in one) for one in segments]}, {"captions": "rows"})
    key = key_of("model", ["packs", "tokenizer"])
    manifests = [_checkpoint(root, "model", key, step) for step in (5, 10)]
    rows = {name: [one[name][0] for one in manifests] for name in manifests[0]}
    rows |= {"label": ["step 5", "step 10"], "step": [5, 10], "loss": [2.0, 1.5]}
    root.put(Model, rows, {"packs": "rows", "tokenizer": "side"}, settings={"steps": 10, "learning_rate": 0.003})
    steps = [[i, {"loss": 3.0 / i, "loss/text": 2.0 / i, "loss/vision": 4.0 / i, "lr": 0.1}, i] for i in range(1, 11)]
    root.ledger.folder("model", key).put("metrics.1", {"steps": steps})


def _checkpoint(root: Planted, dataset: str, key: str, step: int) -> dict[str, list[str]]:
    """A published checkpoint; the columns that name it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.safetensors").write_bytes(f"{dataset} {step}".encode())
        folder_there = CheckpointFolder(root.bucket, f"checkpoints/{dataset}/{key}.1")
        one = folder_there.save(step, Path(folder), {"loss": 1.0 / step})
    return {n: [getattr(one, n)] for n in ("manifest", "manifest_sha256", "files_sha256")}


def _evaluate(root: Planted) -> None:
    """Two answers of each of two checkpoints, their verdicts, and scores: a second dataset of that name."""
    about = {
        "training": ["t" * 32] * 4,
        "step": [5, 5, 10, 10],
        "suite": ["composition"] * 4,
        "task": ["single", "two"] * 2,
    }
    about |= {
        "prompt": ["a red circle", SCRIPT, "a red circle", "two stars"],
        "label": [f"answer {i}" for i in range(4)],
    }
    about |= {"index": [0] * 4}
    media = [png(i) for i in range(4)]
    root.put(generations.Generations, about | {"media": media, "text": [""] * 4, "asks": ["pictures"] * 4})
    judged = {
        "parents": only_parents(keys_of("generations", 4)),
        "score": [0.0, 1.0, 1.0, 0.0],
        "judge": ["pixels@1"] * 4,
    }
    root.put(verdicts.Verdicts, about | judged | {"parts": ['{"why": "<b>none</b>"}'] * 4}, {"generations": "rows"})
    scores = {"training": ["t" * 32] * 2, "step": [5, 10], "score": ["composition/single"] * 2, "value": [0.25, 0.5]}
    scores |= {"low": [0.1, 0.3], "high": [0.4, 0.7], "outcome": ["", "pass"], "champion": [False, True]}
    scores |= {"suite": ["composition"] * 2, "reason": ["", "0.5 is at least 0.4"], "label": ["five", "ten"]}
    root.put(Marks, scores, {"verdicts": "rows"})


def go_on(root: Planted) -> None:
    """A run by this process that trains another model and has made three of its ten steps."""
    begun = {**me(), "run_id": GOING, "at": now_utc()}
    folder = root.ledger.folder("model", "ab" * 16)
    settings = {"steps": 10}
    inputs = {"packs": root.dones["packs"]["snapshot"]["digest"]}
    folder.put(
        "key.json", {"tree": {"recipe": {"stage": "Model", "settings": settings, "sides": {}}, "inputs": inputs}}
    )
    folder.put("claim.1", begun)
    points = [[i, {"loss": 1.0 / i, "loss/text": 0.5 / i}, i] for i in (1, 2, 3)]
    root.bucket.put(f"{folder.path}/curve.1", json.dumps(points).encode())
    started = {**begun, "command": ["run", "--from", "model"]}
    root.bucket.put_if_absent(f"ledger/runs/{GOING}/started", dumps(started))
