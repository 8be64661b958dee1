"""Trainings: curves, also while they go on, and what a checkpoint was made of; tokenizers with their pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dashboards.explorer.root import Root
from infra.checkpoints import CheckpointFolder
from infra.ledger import Folder, snapshot_of
from infra.types import UserError
from pipelines.live import curve_name
from pipelines.standing import Standing

MAX_POINTS = 1500
"""Points of a curve that are sent: of a longer one every k-th, and the last."""


def trainings(root: Root) -> dict[str, Any]:
    """Every materialisation that measured something on its way or wrote checkpoints, the last begun first."""
    standing = root.standing()
    found: list[dict[str, Any]] = []
    for dataset in standing.all:
        prefix = f"ledger/{dataset}"
        keys = sorted({name[len(prefix) + 1 :].partition("/")[0] for name in root.bucket.names(prefix)})
        if any(_trains(root, dataset, key) for key in keys[:1]):
            found += [_training(root, standing, standing.ledger.folder(dataset, key)) for key in keys]
    return {"trainings": sorted(found, key=lambda t: (t["at"] or "", t["key"]), reverse=True)}


def _trains(root: Root, dataset: str, key: str) -> bool:
    """Whether its rows are checkpoints; also before there are any."""
    recipe = (root.document(dataset, key, "key.json") or {}).get("tree", {}).get("recipe", {})
    return any(column[0] == "manifest" for column in recipe.get("schema", []))


def _training(root: Root, standing: Standing, folder: Folder) -> dict[str, Any]:
    names = folder.names()
    number = folder.last("done", names)
    done = folder.get(f"done.{number}") if number else None
    begun = root.document(folder.dataset, folder.key, "claim.1") or {}
    recipe = (root.document(folder.dataset, folder.key, "key.json") or {}).get("tree", {}).get("recipe", {})
    stands = standing.dones.get(folder.dataset, {}).get("key") == folder.key
    state = "going on" if folder.holder() else "made" if done else "stopped"
    settings = recipe.get("settings", {})
    return {
        "dataset": folder.dataset,
        "key": folder.key,
        "at": begun.get("at"),
        "state": state,
        "stands": stands,
        "version": done["snapshot"]["version"] if done else None,
        "seconds": done["seconds"] if done else None,
        "metrics": done["metrics"] if done else {},
        "steps": settings.get("steps"),
        "num_settings": len(settings),
        "has_curve": any(n.startswith(("curve.", "metrics.")) for n in names),
        "pictures": sorted(n for n in names if n.startswith("picture.")),
    }


def training(root: Root, dataset: str, key: str) -> dict[str, Any]:
    """One training: its curve, checkpoints, settings and all that it was made of."""
    folder = folder_of(root, dataset, key)
    standing = root.standing()
    tree = root.document(dataset, key, "key.json") or {"tree": {}, "notes": {}}
    recipe = tree["tree"].get("recipe", {})
    return {
        **_training(root, standing, folder),
        "curve": _thinned(curve(folder)),
        "checkpoints": _checkpoints(root, folder),
        "settings": recipe.get("settings", {}),
        "stage": {n: recipe.get(n) for n in ("stage", "revision")},
        "code": (tree.get("notes") or {}).get("code"),
        "made_of": made_of(root, folder),
        "run": _run_of(standing, folder),
    }


def folder_of(root: Root, dataset: str, key: str) -> Folder:
    """The folder of a materialisation, if the ledger has it: names from an address are never paths."""
    standing = root.standing()
    known = dataset in standing.all and len(key) == 32 and all(c in "0123456789abcdef" for c in key)
    folder = standing.ledger.folder(dataset, key)
    if not known or not folder.names():
        raise UserError(
            f"{dataset}/{key[:40]} is no materialisation of {root.bucket.uri}: `plait status` names those that stand"
        )
    return folder


def curve(folder: Folder) -> list[tuple[int, dict[str, float], int]]:
    """Step, metrics and time of what was measured: while it goes on, or when it is done."""
    names = folder.names()
    last = max(folder.last("metrics", names), folder.last("curve", names))
    if f"metrics.{last}" in names:
        document = folder.get(f"metrics.{last}") or {}
        return document.get("steps", [])
    data = folder.bucket.get(f"{folder.path}/{curve_name(last)}") if last else None
    return json.loads(data) if data else []


def _thinned(points: list[tuple[int, dict[str, float], int]]) -> dict[str, Any]:
    """Columns of a curve, of at most so many points: every k-th step, and the last."""
    every = -(-len(points) // MAX_POINTS) or 1
    kept = points[::every] + (points[-1:] if points and (len(points) - 1) % every else [])
    names = sorted({name for _, metrics, _ in kept for name in metrics})
    columns = {name: [metrics.get(name) for _, metrics, _ in kept] for name in names}
    return {"steps": [p[0] for p in kept], "at": [p[2] for p in kept], "metrics": columns, "num_steps": len(points)}


def _checkpoints(root: Root, folder: Folder) -> list[dict[str, Any]]:
    """Those of the bucket, published as rows or not yet; their files are named, never read."""
    prefix = f"checkpoints/{folder.dataset}/"
    folders = sorted({n[len(prefix) :].partition("/")[0] for n in root.bucket.names(prefix.rstrip("/"))})
    found: list[dict[str, Any]] = []
    for name in (n for n in folders if n.partition(".")[0] == folder.key):
        for one in CheckpointFolder(root.bucket, f"{prefix}{name}").all():
            facts = {k: v for k, v in one.facts.items() if isinstance(v, int | float | str)}
            manifest = {"step": one.step, "manifest": one.manifest, "files_sha256": one.files_sha256}
            found.append({**manifest, "facts": facts, "row": _row_of(root, folder, one.files_sha256)})
    return found


def _row_of(root: Root, folder: Folder, files_sha256: str) -> str | None:
    """Key of the row that a checkpoint became."""
    snapshot = root.snapshot(folder.dataset)
    if snapshot is None or "files_sha256" not in root.columns(snapshot):
        return None
    rows = root.page(snapshot, ["key"], f"files_sha256 = '{files_sha256}'", 1)
    return rows[0]["key"].hex() if rows else None


def made_of(root: Root, folder: Folder) -> list[dict[str, Any]]:
    """Every dataset above a materialisation, nearest first: version, digest, rows, settings and code of its stage."""
    standing = root.standing()
    number = folder.last("done")
    done = folder.get(f"done.{number}") if number else None
    inputs = done["inputs"] if done else _planned_inputs(standing, folder)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    waiting = [(folder.dataset, given) for given in inputs.values()]
    while waiting:
        reader, given = waiting.pop(0)
        snapshot = given["snapshot"]
        mark = snapshot["name"], snapshot["version"]
        if mark in found:
            found[mark]["readers"].append(reader)
            continue
        before = standing.of_input(given)
        tree = root.settings(before) if before else {"tree": {}, "notes": {}}
        found[mark] = {
            **{n: snapshot[n] for n in ("name", "version", "digest", "rows")},
            "role": given["role"],
            "readers": [reader],
            "settings": tree["tree"].get("recipe", {}).get("settings", {}),
            "code": (tree.get("notes") or {}).get("code"),
            "at": before["at"] if before else None,
            "run_id": before["run_id"] if before else None,
        }
        waiting += [(snapshot["name"], one) for one in (before["inputs"].values() if before else [])]
    return list(found.values())


def _planned_inputs(standing: Standing, folder: Folder) -> dict[str, Any]:
    """Inputs of a materialisation that is not done, by the digests of its key."""
    tree = (folder.get("key.json") or {}).get("tree", {})
    found: dict[str, Any] = {}
    for role, digests in (("rows", tree.get("inputs", {})), ("side", tree.get("recipe", {}).get("sides", {}))):
        for name, digest in digests.items():
            made = [d for d in standing.all.get(name, []) if d["snapshot"]["digest"] == digest]
            if made:
                found[name] = {"role": role, "unit": "key", "snapshot": made[-1]["snapshot"]}
    return found


def _run_of(standing: Standing, folder: Folder) -> dict[str, Any] | None:
    """The run that made it, with its command."""
    number = folder.last("claim")
    claims = [folder.get(f"claim.{n}") or {} for n in range(number, 0, -1)]
    run_id = next((c["run_id"] for c in claims if c.get("run_id")), None)
    if run_id is None:
        return None
    try:
        record: Mapping[str, Any] = standing.ledger.run(run_id)
    except FileNotFoundError:  # it goes on, or was killed
        record = json.loads(folder.bucket.get(f"ledger/runs/{run_id}/started") or b"{}")
    return {"run_id": run_id, "command": record.get("command")}


def tokenizers(root: Root) -> dict[str, Any]:
    """Trainings of tokenizers with their pictures and what was measured of them."""
    found = [t for t in trainings(root)["trainings"] if t["dataset"].endswith("tokenizer")]
    for one in found:
        snapshot = [d for d in root.standing().all.get(one["dataset"], []) if d["key"] == one["key"]]
        columns = ("step", "kind", "codebook_size", "psnr", "ssim", "perplexity", "usage", "size")
        one["rows"] = root.page(snapshot_of(snapshot[-1]), columns) if snapshot else []
    return {"tokenizers": sorted(found, key=lambda one: not one["pictures"])}  # what can be looked at comes first


def picture(root: Root, dataset: str, key: str, name: str) -> bytes:
    """A picture that a job left: only names that its folder has."""
    folder = folder_of(root, dataset, key)
    if not name.startswith("picture.") or not name.endswith(".png") or name not in folder.names():
        pictures = sorted(n for n in folder.names() if n.startswith("picture."))
        raise UserError(f"{name[:80]!r} is no picture of {dataset}/{key[:8]}: it has {', '.join(pictures) or 'none'}")
    return folder.get_bytes(name)
