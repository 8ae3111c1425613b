"""The Kubernetes manifests, as kustomize builds them: the schemas, and the rules of deploy/kuberay/check.py.

KubeRay's schemas (RayJob, RayCluster, RayService v1) lie beside the repository; what needs them skips where
they do not.
"""

import copy
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from d1ray.config.recipe import load_config

REPOSITORY = Path(__file__).parents[2]
OVERLAYS = REPOSITORY / "deploy" / "kuberay" / "overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
CORE = {"v1", "networking.k8s.io/v1"}

Objects = list[dict[str, Any]]

program = importlib.util.spec_from_file_location("check", REPOSITORY / "deploy" / "kuberay" / "check.py")
assert program is not None and program.loader is not None
check = importlib.util.module_from_spec(program)
program.loader.exec_module(check)


@pytest.fixture(scope="module")
def built(kustomize: Callable[[Path], Objects]) -> dict[str, Objects]:
    return {name: kustomize(OVERLAYS / name) for name in NAMES}


# The schemas


def strict(schema: Any) -> Any:
    """The schema with fields it does not name forbidden, at every depth: Kubernetes drops them silently."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(part) for key, part in schema.items()}
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def schema_faults(objects: Objects) -> Iterator[str]:
    for item in check.of_kind(objects, "RayJob", "RayCluster", "RayService"):
        schema = strict(json.loads((SCHEMAS / f"{item['kind'].lower()}s.v1.schema.json").read_text()))
        schema["properties"]["metadata"] = {"type": "object"}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(item):
            yield f"{item['kind']} {error.json_path}: {error.message}"


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_obeys_the_rules(name: str, built: dict[str, Objects]) -> None:
    assert list(check.clusters(built[name]))
    assert check.faults(built[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_passes_kuberays_schemas(name: str, built: dict[str, Objects]) -> None:
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's schemas are not in {SCHEMAS}")
    assert list(schema_faults(built[name])) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_passes_the_schemas_of_kubernetes(name: str, built: dict[str, Objects]) -> None:
    checked = [item for item in built[name] if item["apiVersion"] in CORE]
    assert {item["kind"] for item in checked} == {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    for item in checked:
        kubernetes_validate.validate(item, "1.33", strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_everything_of_an_overlay_is_in_its_namespace(name: str, built: dict[str, Objects]) -> None:
    cluster_wide = {"Namespace", "ClusterQueue", "ResourceFlavor", "Queue"}
    spaces = {i["metadata"].get("namespace") for i in built[name] if i["kind"] not in cluster_wide}
    assert spaces == {"d1ray"}


def test_the_images_are_one_an_overlay_and_tagged(built: dict[str, Objects]) -> None:
    for objects in built.values():
        [image] = {pod["spec"]["containers"][0]["image"] for pod in check.pods(objects)}
        assert re.fullmatch(r"d1ray:(cpu|cuda)", image)


def test_hooks_run_programs_of_the_image(built: dict[str, Objects]) -> None:
    installed = (REPOSITORY / "docker" / "Dockerfile").read_text()
    assert "/usr/local/bin/d1ray-drain" in installed
    for objects in built.values():
        for group in check.groups(objects):
            [container] = group["template"]["spec"]["containers"]
            hook = container["lifecycle"]["preStop"]["exec"]["command"][0]
            assert hook == ("ray" if "groupName" in group else "d1ray-drain")


SLOW = "d1ray train llada-8b-gsm8k run_dir=/mnt/d1ray/run cluster.grace_s=90"


def test_pods_get_as_long_to_stop_as_runs_take(built: dict[str, Objects]) -> None:
    assert load_config("sudoku-tiny").cluster.grace_s == check.GRACE_S
    assert any("more than 90" in f for f in check.faults(plant(built["gpu-8b"], "entrypoint", SLOW)))


# Faults that are planted are found: a path below the RayJob's spec, what is put there, and what is said

GROUP = "rayClusterSpec.workerGroupSpecs.0"
POD = f"{GROUP}.template.spec"
SCORER = "rayClusterSpec.workerGroupSpecs.1.template.spec"
TOKEN = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "d1ray-hub", "key": "token"}}}
HEAD = "rayClusterSpec.headGroupSpec"
PLANTED: list[tuple[str, Any, str]] = [
    ("submissionMode", "k8sJobMode", "none of KubeRay's"),
    ("submissionMode", "SidecarMode", "would refuse"),
    ("deletionStrategy", {}, "either shutdownAfterJobFinishes"),
    ("ttlSecondsAfterFinished", None, "either shutdownAfterJobFinishes"),
    ("preRunningDeadlineSeconds", None, "could pend"),
    ("activeDeadlineSeconds", 604800, "ends a run"),
    ("backoffLimit", 0, "not tried again"),
    ("entrypoint", "d1ray train sudoku-tiny run_dir=/mnt/d1ray/a; rm b", "plain words"),
    ("entrypoint", "d1ray train sudoku-tiny run_dir=/tmp/run", "outlives"),
    ("rayClusterSpec.authOptions", None, "runs code"),
    ("rayClusterSpec.rayVersion", "2.9.0", "not the image's"),
    ("rayClusterSpec.autoscalerOptions.version", None, "not v2"),
    ("rayClusterSpec.autoscalerOptions.securityContext", None, "autoscaler: may gain"),
    (f"{HEAD}.rayStartParams.num-cpus", None, "takes actors"),
    (f"{HEAD}.template.spec.containers.0.env.0.value", "3", "more than 30 are needed"),
    (f"{HEAD}.serviceType", "LoadBalancer", "exposed"),
    (f"{HEAD}.template.spec.terminationGracePeriodSeconds", 30, "before its run"),
    (f"{GROUP}.replicas", 99, "between"),
    (f"{GROUP}.rayStartParams.object-store-memory", "99999999999", "does not fit"),
    (f"{GROUP}.template.metadata.labels", {}, "out of the policies"),
    (f"{GROUP}.template.metadata.labels", {"app.kubernetes.io/part-of": "d1ray"}, "d1ray/cluster, or lack"),
    (f"{POD}.restartPolicy", "Always", "restartPolicy"),
    (f"{POD}.hostNetwork", True, "host's namespaces"),
    (f"{POD}.automountServiceAccountToken", None, "token of the Kubernetes API"),
    (f"{POD}.securityContext.runAsNonRoot", None, "as root"),
    (f"{POD}.volumes.0.emptyDir", {}, "not a memory volume"),
    (f"{POD}.volumes.0", {"name": "shm", "hostPath": {"path": "/dev/shm"}}, "volume shm"),
    (f"{POD}.containers.0.resources.requests", None, "no requests"),
    (f"{POD}.containers.0.securityContext.privileged", True, "gain privileges"),
    (f"{POD}.containers.0.env.1", {"name": "HF_TOKEN", "value": "hf_x"}, "value of HF_TOKEN"),
    (f"{SCORER}.automountServiceAccountToken", True, "token of the Kubernetes API"),
    (f"{SCORER}.containers.0.volumeMounts.0.readOnly", None, "scorers: may write to /mnt/d1ray"),
    (f"{SCORER}.containers.0.env", [TOKEN], "scorers: holds HF_TOKEN"),
    (f"{SCORER}.containers.0.envFrom", [{"secretRef": {"name": "d1ray-hub"}}], "scorers: holds all of"),
]
TYPOS: list[tuple[str, Any]] = [
    ("backOffLimit", 5),
    ("rayClusterSpec.authOption", {}),
    (f"{HEAD}.rayStartParams.num-cpus", 0),
    (f"{GROUP}.minReplicas", None),
    (f"{POD}.terminationGraceSeconds", 30),
    (f"{POD}.containers.0.volumeMount", []),
]


def plant(objects: Objects, path: str, value: Any) -> Objects:
    """A copy with ``value`` at ``path``; None removes what is there."""
    objects = copy.deepcopy(objects)
    [job] = check.of_kind(objects, "RayJob")
    *parents, last = path.split(".")
    place = job["spec"]
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    key = int(last) if isinstance(place, list) else last
    if value is None:
        del place[key]
    else:
        place[key] = value
    return objects


@pytest.mark.parametrize(("path", "value", "said"), PLANTED)
def test_a_planted_fault_is_found(path: str, value: Any, said: str, built: dict[str, Objects]) -> None:
    found = check.faults(plant(built["gpu-8b"], path, value))
    assert any(said in fault for fault in found), found


@pytest.mark.parametrize(("path", "value"), TYPOS)
def test_a_planted_typo_is_found_by_kuberays_schemas(
    path: str, value: Any, built: dict[str, Objects]
) -> None:
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's schemas are not in {SCHEMAS}")
    assert list(schema_faults(plant(built["gpu-8b"], path, value)))


def test_pods_that_meet_strangers_hold_no_token_and_only_read(built: dict[str, Objects]) -> None:
    """Scorers, and all that serves; the other pods of training write checkpoints, and ask the hub."""
    met = set()
    for objects in built.values():
        for item in check.of_kind(objects, *check.CLUSTER_FIELD, "RayCluster"):
            for group in check.groups([item]):
                name = group.get("groupName", "head")
                [container] = group["template"]["spec"]["containers"]
                [volume] = [mount for mount in container["volumeMounts"] if mount["name"] == "runs"]
                held = {variable["name"] for variable in container.get("env", []) if "valueFrom" in variable}
                exposed = name == "scorers" or item["kind"] == "RayService"
                assert (volume.get("readOnly", False), held) == (exposed, set() if exposed else {"HF_TOKEN"})
                met.add((item["kind"], name))
    assert met >= {("RayJob", "scorers"), ("RayCluster", "scorers"), ("RayService", "replicas")}


def test_an_open_policy_is_found(built: dict[str, Objects]) -> None:
    def changed(change: Callable[[dict[str, Any]], Any]) -> list[str]:
        objects = copy.deepcopy(built["gpu-8b"])
        policies = {item["metadata"]["name"]: item for item in check.of_kind(objects, "NetworkPolicy")}
        change(policies)
        return check.faults([item for item in objects if item["metadata"]["name"] != "gone"])

    def peer(policy: dict[str, Any]) -> Any:
        return policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]

    dashboard = "d1ray-dashboard"
    for change, said in (
        (lambda p: p[dashboard]["spec"]["ingress"][0].pop("from"), "everybody"),
        (lambda p: p[dashboard]["spec"]["ingress"][0]["from"][0].pop("podSelector"), "whole namespace"),
        (lambda p: p["d1ray-deny"]["metadata"].update(name="gone"), "no policy denies"),
        (lambda p: p["d1ray-metrics"]["metadata"].update(name="gone"), "Prometheus"),
        (lambda p: p["d1ray-train"]["metadata"].update(name="gone"), "no policy opens"),
        (lambda p: peer(p["d1ray-train"]).pop("d1ray/cluster"), "other clusters in"),
        (lambda p: peer(p["d1ray-train"]).update({"d1ray/cluster": "x"}), "to each other (ingress)"),
    ):
        found = changed(change)
        assert any(said in fault for fault in found), found


def test_a_queue_that_cannot_take_the_job_is_found(built: dict[str, Objects]) -> None:
    queued = built["gpu-8b-kueue"]
    scaling = plant(queued, "rayClusterSpec.autoscalerOptions", {"version": "v2"})
    assert any(
        "scale" in f for f in check.faults(plant(scaling, "rayClusterSpec.enableInTreeAutoscaling", True))
    )
    assert any("little nvidia.com/gpu" in f for f in check.faults(plant(queued, f"{GROUP}.replicas", 7)))
    gone = [item for item in queued if item["kind"] != "LocalQueue"]
    assert any("no LocalQueue" in f for f in check.faults(gone))
    gone = [item for item in built["gpu-8b-volcano"] if item["kind"] != "Queue"]
    assert any("no Queue" in f for f in check.faults(gone))


def test_the_check_is_a_program_for_overlays_of_ones_own(built: dict[str, Objects]) -> None:
    command = [sys.executable, REPOSITORY / "deploy" / "kuberay" / "check.py"]
    good = built["cpu-demo"]
    for objects, status in ((good, 0), (plant(good, "backoffLimit", 0), 1)):
        manifests = yaml.safe_dump_all(objects)
        done = subprocess.run(command, input=manifests, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert ("backoffLimit" in done.stdout) == bool(status)
