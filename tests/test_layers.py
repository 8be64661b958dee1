"""Imports go down only, and a stage costs nothing to import."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO


def test_import_contracts_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_planning_imports_nothing_heavy():
    heavy = (
        "torch",
        "ray",
        "mlflow",
        "deepspeed",
        "av",
        "cv2",
        "scenedetect",
        "rapidocr",
        "transformers",
        "openai",
        "rensa",
    )
    ours = "pipelines.demo, pipelines.curate, pipelines.plan, pipelines.cli.main"
    code = f"import sys, {ours}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_named_files_import_ray_lance_mlflow_and_hydra():
    allowed = {
        "mlflow": {"infra/tracking.py", "infra/champions.py", "infra/mlflow_source.py"},
        "lance": {"infra/store.py", "infra/commits.py", "infra/compact.py", "infra/mlflow_source.py"},
        "hydra": {"pipelines/cli/compose.py"},
        "ray": {
            "infra/fleet.py",
            "infra/cluster.py",
            "infra/jobs.py",
            "infra/telemetry.py",
            "stages/workers/fit.py",
            "stages/workers/pulse.py",
            "stages/workers/gauges.py",
            "stages/train/rank.py",
            "stages/workers/ranks.py",
            "stages/workers/sigterm.py",
            "stages/workers/card.py",
            "stages/tokenizer/loop.py",
        },
    }
    for library, files in allowed.items():
        for room in ("infra", "models", "stages", "pipelines", "dashboards"):
            for path in (REPO / room).rglob("*.py"):
                found = re.search(rf"^\s*(import|from) {library}\b", path.read_text(), re.MULTILINE)
                uses = found is not None
                assert not uses or str(path.relative_to(REPO)) in files, f"{path} imports {library}"
