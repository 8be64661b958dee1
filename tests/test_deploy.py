"""What infra/deploy puts up: manifests against schemas, secrets by reference, room, grace, commands that parse."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from infra.deploy.render import render
from pipelines.cli.compose import setup
from tests import kuberay
from tests.conftest import REPO

DEPLOY = REPO / "infra" / "deploy"
VALUES = yaml.safe_load((DEPLOY / "values.yaml").read_text())
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY")
MADE_BY_KUBERAY = {"plait-head-svc"}


def documents() -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(render(VALUES)) if document]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec, by what makes it."""
    for document in documents():
        spec, kind = document.get("spec", {}), document["kind"]
        if kind in ("Deployment", "StatefulSet"):
            yield named(document), spec["template"]["spec"]
        elif kind == "CronJob":
            yield named(document), spec["jobTemplate"]["spec"]["template"]["spec"]
        elif kind == "RayCluster":
            for group in kuberay.groups(spec):
                yield f"RayCluster/{group.get('groupName', 'head')}", group["template"]["spec"]


@pytest.mark.parametrize("document", documents(), ids=named)
def test_a_manifest_fits_its_schema(document):
    import kubernetes_validate

    assert document["metadata"]["namespace"] == VALUES["namespace"]
    if not document["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(document, "1.33", strict=True)
        return
    kuberay.check(document)
    for group in kuberay.groups(document["spec"]):
        template = {"metadata": {}, **group["template"]}
        template["metadata"] = {"labels": {"app": "x"}, **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)


def test_a_field_that_kuberay_does_not_know_is_found_out():
    (cluster,) = (d for d in documents() if d["kind"] == "RayCluster")
    cluster["spec"]["workerGroups"] = cluster["spec"].pop("workerGroupSpecs")
    with pytest.raises(ValueError, match="workerGroups"):
        kuberay.check(cluster)


def test_secrets_are_read_by_reference_alone():
    assert not [d for d in documents() if d["kind"] == "Secret"]
    for name, pod in pods():
        for env in (env for container in pod["containers"] for env in container.get("env", [])):
            assert not SECRET.search(env["name"]) or "secretKeyRef" in env["valueFrom"], (name, env)
    for config in (d for d in documents() if d["kind"] == "ConfigMap"):
        assert not any(SECRET.search(key) for key in config["data"]), config["metadata"]["name"]


def test_every_container_asks_for_room_and_has_a_bound():
    for name, pod in pods():
        for container in pod["containers"]:
            room = container["resources"]
            assert {"cpu", "memory"} <= room["requests"].keys() and "memory" in room["limits"], name


def test_training_has_time_to_save_before_its_pod_ends():
    for name, pod in pods():
        if name.startswith("RayCluster/"):
            (container,) = pod["containers"]
            command = container["lifecycle"]["preStop"]["exec"]["command"]
            assert command[0] == "plait-leave" and 120 <= int(command[1]) < pod["terminationGracePeriodSeconds"]


def test_the_gpu_pool_holds_the_workers_of_a_training_from_the_beginning():
    workers = re.search(r"cluster\.stages\.model\.workers=(\d+)", VALUES["run"]["overrides"])
    assert workers and VALUES["gpu_pool"]["min"] * VALUES["gpu_pool"]["gpus"] >= int(workers[1])


def test_services_that_are_called_are_there():
    text = render(VALUES)
    called = set(re.findall(rf"https?://([\w-]+)\.{VALUES['namespace']}\.svc", text))
    there = {d["metadata"]["name"] for d in documents() if d["kind"] == "Service"} | MADE_BY_KUBERAY
    assert called and called <= there, called - there
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(scraped["dns_sd_configs"][0]["names"]) <= there | services.keys()


def commands() -> list[str]:
    """Every `plait run` of the manifests and of docs/deploy.md."""
    text = render(VALUES) + (REPO / "docs" / "deploy.md").read_text().replace("\\\n", " ")
    return [" ".join(found.split()) for found in re.findall(r"plait run[^\n`|]*", text) if "=" in found]


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [word for word in shlex.split(command, comments=True)[2:] if "=" in word and not word.startswith("--")]
    made = setup(overrides)
    assert made.root.uri.startswith("s3://")


def test_a_value_that_is_missing_is_named():
    with pytest.raises(SystemExit, match=r"asks for the value image\.cpu: give it"):
        render({**VALUES, "image": {}})
    with pytest.raises(SystemExit, match="there is no manifest vllm: there are captions"):
        render(VALUES, ["vllm"])


def test_the_command_renders_what_was_asked_for():
    command = [sys.executable, str(DEPLOY / "render.py"), "--only", "run", "nightly"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert [d["kind"] for d in yaml.safe_load_all(done.stdout)] == ["RayJob", "CronJob"]


# --- compose and the image ------------------------------------------------------------------------------------------

OF_A_SERVICE = {
    "image", "build", "command", "entrypoint", "environment", "restart", "ports", "volumes", "healthcheck",
    "depends_on", "deploy", "shm_size", "stop_grace_period", "pre_stop",
}  # fmt: skip
"""Fields that we use of the compose specification's `service`."""
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def test_the_compose_file_is_whole():
    text = (DEPLOY / "compose.yaml").read_text()
    compose = yaml.safe_load(text)
    services = compose["services"]
    assert compose.keys() <= {"name", "services", "volumes", "x-ray"}
    for name, service in services.items():
        assert service.keys() <= OF_A_SERVICE and "image" in service, name
        needs = service.get("depends_on", {})
        assert set(needs) <= services.keys()
        assert all(needs[n]["condition"] in CONDITIONS for n in needs if isinstance(needs, dict)), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (DEPLOY / source).exists(), volume
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_secrets_of_the_compose_file_have_no_values_and_are_asked_for():
    text = (DEPLOY / "compose.yaml").read_text()
    example = dict(line.split("=", 1) for line in (DEPLOY / "compose.env.example").read_text().splitlines() if "=" in line and line[0] != "#")  # fmt: skip  # noqa: E501
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == example.keys()
    for name in used:
        if SECRET.search(name) or name == "STORE_USER":
            assert example[name] == "" and all(rest == ":?" for rest in re.findall(rf"\${{{name}(..)", text)), name
    ignored = subprocess.run(["git", "check-ignore", "infra/deploy/compose.env"], cwd=REPO, check=False)
    assert ignored.returncode == 0


def test_the_image_gets_everything_that_plait_is_made_of():
    text = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((REPO / source).exists() for source in sources.split())
    packages = project["tool"]["setuptools"]["packages"]
    rooms = re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE)
    found = {str(p.parent.relative_to(REPO)).replace("/", ".") for room in rooms for p in (REPO / room).rglob("__init__.py")}  # fmt: skip  # noqa: E501
    assert found == set(packages), "pip would install another set of packages than there is"
    script = re.search(r"python -c '(.+?)' > needed.txt", text)
    assert script
    told = subprocess.run([sys.executable, "-c", script[1]], cwd=REPO, capture_output=True, text=True, check=True)
    extras = project["project"]["optional-dependencies"]
    assert told.stdout.splitlines() == project["project"]["dependencies"] + extras["weights"] + extras["server"]
    assert sum(line.startswith("torch==") for line in told.stdout.splitlines()) == 1


def test_opencv_is_the_one_that_needs_no_screen():
    """`opencv-python` overwrites the headless one's files and cannot be loaded where there is no X, as in the image."""
    files = {"cv2/" + name for name in ("__init__.py", "version.py")}
    owners = {d.name for d in metadata.distributions() if files & {str(file) for file in d.files or ()}}
    assert owners == {"opencv-python-headless"}


def test_mlflow_reaches_its_database_by_the_driver_that_is_installed():
    """The bare `postgresql://` is psycopg2 before SQLAlchemy 2.1 and psycopg from then on."""
    server = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    for path in (DEPLOY / "compose.yaml", DEPLOY / "kubernetes" / "mlflow.yaml"):
        found = re.findall(r"postgresql[^\s\",]*", path.read_text())
        drivers = [make_url(uri).get_dialect().driver for uri in found if "://" in uri]
        assert drivers == ["psycopg2"] and server[0].startswith("psycopg2-binary"), path


APART = ["unshare", "--pid", "--fork", "--mount-proc"]
LEAVE = """
bash -c 'exec -a ray::RayTrainWorker.step python3 -c "$0"' "$DEAF_OR_NOT" & sleep 1
start=$(date +%s%N); sh "$LEAVE" 3; echo $((($(date +%s%N) - start) / 1000000000)); pgrep -c -f ^ray::RayTrainWorker
"""
SAVES = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit())); time.sleep(60)"
)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.skipif(
    subprocess.run([*APART, "true"], check=False, capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="a space of processes of one's own needs rights: the script would reach the trainings of this machine",
)
@pytest.mark.parametrize(("worker", "left"), [(SAVES, 0), (DEAF, 1)])
def test_a_node_that_goes_waits_for_its_workers_and_not_for_ever(worker, left):
    environment = {"DEAF_OR_NOT": worker, "LEAVE": str(DEPLOY / "leave.sh"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*APART, "sh", "-c", LEAVE], env=environment, capture_output=True, text=True, check=False)
    seconds, num = map(int, done.stdout.split())
    assert num == left and (1 <= seconds <= 3), done
