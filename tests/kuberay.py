"""Which fields KubeRay's resources have, of those that our manifests use: a reduced schema, written from its types.

Read off `ray-operator/apis/ray/v1/raycluster_types.go` (commit 3275ee09) and `rayjob_types.go` (commit f6ef3f7b) of
github.com/ray-project/kuberay, and `authOptions` off its sample `ray-cluster.auth.secret-ref.yaml` (commit a3ae232e),
which is newer than those. Pod templates are Kubernetes' own, and are checked by its schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TEXT, FLAG, NUMBER, MAP = (str,), (bool,), (int,), (dict,)
Fields = Mapping[str, Any]
"""A field's types, or the fields of what stands in it, or of each entry of the list that stands in it."""

AUTOSCALER: Fields = {"upscalingMode": TEXT, "idleTimeoutSeconds": NUMBER, "resources": MAP, "image": TEXT}
AUTH: Fields = {"mode": TEXT, "secretName": TEXT}
HEAD: Fields = {"rayStartParams": MAP, "template": MAP, "serviceType": TEXT, "enableIngress": FLAG}
WORKERS: Fields = {
    "groupName": TEXT,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "numOfHosts": NUMBER,
    "idleTimeoutSeconds": NUMBER,
    "rayStartParams": MAP,
    "template": MAP,
}
CLUSTER: Fields = {
    "rayVersion": TEXT,
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": AUTOSCALER,
    "authOptions": AUTH,
    "suspend": FLAG,
    "headGroupSpec": HEAD,
    "workerGroupSpecs": [WORKERS],
}
JOB: Fields = {
    "entrypoint": TEXT,
    "clusterSelector": MAP,
    "submissionMode": TEXT,
    "submitterConfig": {"backoffLimit": NUMBER},
    "rayClusterSpec": CLUSTER,
    "shutdownAfterJobFinishes": FLAG,
    "ttlSecondsAfterFinished": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "backoffLimit": NUMBER,
    "runtimeEnvYAML": TEXT,
    "submitterPodTemplate": MAP,
}
NEEDED = {id(HEAD): {"rayStartParams", "template"}, id(CLUSTER): {"headGroupSpec"}}
NEEDED[id(WORKERS)] = {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CHOICES = {
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode"},
    "mode": {"token", "disabled"},
}


def check(document: Mapping[str, Any]) -> None:
    """ValueError where a RayCluster or a RayJob has a field that KubeRay does not know, or lacks one."""
    if document["apiVersion"] != "ray.io/v1":
        raise ValueError(f"{document['apiVersion']} is no version of KubeRay's resources")
    _fits(document["spec"], {"RayCluster": CLUSTER, "RayJob": JOB}[document["kind"]], "spec")


def groups(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Head and worker groups of a RayCluster; none of a RayJob that selects a cluster."""
    if "headGroupSpec" in spec:
        yield spec["headGroupSpec"]
    yield from spec.get("workerGroupSpecs", [])


def _fits(value: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, tuple):
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ValueError(f"{where} is {value!r}")
        if where.rsplit(".", 1)[-1] == "rayStartParams" and not all(isinstance(v, str) for v in value.values()):
            raise ValueError(f"{where} has a value that is no text: {value!r}")
    elif isinstance(wanted, list):
        for number, entry in enumerate(value):
            _fits(entry, wanted[0], f"{where}[{number}]")
    else:
        if unknown := value.keys() - wanted.keys():
            raise ValueError(f"{where} has no field {', '.join(sorted(unknown))}")
        if lacking := NEEDED.get(id(wanted), set()) - value.keys():
            raise ValueError(f"{where} lacks {', '.join(sorted(lacking))}")
        for name, part in value.items():
            if name in CHOICES and part not in CHOICES[name]:
                raise ValueError(f"{where}.{name} is {part!r}: one of {', '.join(sorted(CHOICES[name]))}")
            _fits(part, wanted[name], f"{where}.{name}")
