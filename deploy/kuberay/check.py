#!/usr/bin/env python
"""Checks manifests of d1ray on KubeRay for what no schema says; a line each for what is wrong.

    kubectl kustomize deploy/kuberay/overlays/gpu-8b | python deploy/kuberay/check.py

An overlay of your own should pass, too, before it is applied. Exit status 1 where something is wrong.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay.utils import parse_quantity

SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
CLUSTER_FIELD = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
PART = ("app.kubernetes.io/part-of", "d1ray")
CLUSTER = "d1ray/cluster"  # the label of pods that may reach each other
LONG_S = 30 * 86400
GRACE_S = 30  # the default of cluster.grace_s: a run that got SIGTERM ends within it
LOCK = Path(__file__).parents[2] / "docker" / "requirements.lock"

Objects = list[dict[str, Any]]


# What is in a build


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [item for item in objects if item["kind"] in kinds]


def clusters(objects: Objects) -> Iterator[dict[str, Any]]:
    for item in of_kind(objects, "RayCluster", *CLUSTER_FIELD):
        yield item["spec"][CLUSTER_FIELD[item["kind"]]] if item["kind"] in CLUSTER_FIELD else item["spec"]


def groups(objects: Objects) -> Iterator[dict[str, Any]]:
    """Every head and worker group."""
    for cluster in clusters(objects):
        yield from (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])


def pods(objects: Objects) -> Iterator[dict[str, Any]]:
    """Every pod template."""
    yield from (group["template"] for group in groups(objects))
    for job in of_kind(objects, "RayJob"):
        yield job["spec"]["submitterPodTemplate"]


def seconds_to_stop(cluster: dict[str, Any]) -> int:
    """How long Ray waits for a stopped run, by the head's environment."""
    [container] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    return int(environment.get("RAY_JOB_STOP_WAIT_TIME_S", "3"))


def bytes_of(quantity: str) -> int:
    return int(parse_quantity(quantity))


# The rules


def job_faults(objects: Objects) -> Iterator[str]:
    for job in of_kind(objects, "RayJob"):
        spec = job["spec"]
        if spec.get("submissionMode") not in SUBMISSION_MODES:
            yield f"submissionMode {spec.get('submissionMode')!r} is none of KubeRay's"
        if spec.get("submissionMode") == "SidecarMode":
            yield "SidecarMode's container has no securityContext: the namespace would refuse the head pod"
        shuts_down = spec.get("shutdownAfterJobFinishes") and "ttlSecondsAfterFinished" in spec
        if bool(shuts_down) == ("deletionStrategy" in spec):
            yield "either shutdownAfterJobFinishes with ttlSecondsAfterFinished, or deletionStrategy"
        if spec.get("preRunningDeadlineSeconds", 0) <= 0:
            yield "preRunningDeadlineSeconds is missing: the job could pend for ever"
        if 0 < spec.get("activeDeadlineSeconds", 0) < LONG_S:
            yield "activeDeadlineSeconds ends a run however well it goes: leave it out, or allow a month"
        if spec.get("backoffLimit", 0) < 1:
            yield "backoffLimit: a job that loses its head is not tried again"
        if len(job["metadata"]["name"]) > 47:
            yield "the name is longer than KubeRay allows"
        if re.search(r"[$&|;<>`(){}'\"\\*?~#]", spec["entrypoint"]):
            yield "the entrypoint passes through a shell: plain words only"
        settings = dict(word.split("=", 1) for word in shlex.split(spec["entrypoint"]) if "=" in word)
        run_dir, grace_s = settings["run_dir"], settings.get("cluster.grace_s", GRACE_S)
        if not float(grace_s) < (stop := seconds_to_stop(spec["rayClusterSpec"])):
            yield f"a run has {stop} s to stop: more than {grace_s} are needed (RAY_JOB_STOP_WAIT_TIME_S)"
        for group in groups([job]):
            if not any(run_dir.startswith(f"{mount}/") for mount in claims_mounted(group["template"])):
                yield f"{run_dir} is not on a volume that outlives the pods: a retry could not go on from it"


def claims_mounted(pod: dict[str, Any]) -> list[str]:
    claims = {volume["name"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume}
    [container] = pod["spec"]["containers"]
    return [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]


def cluster_faults(objects: Objects) -> Iterator[str]:
    lock = LOCK.read_text()
    for cluster in clusters(objects):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield "authOptions.mode is not token: whoever reaches the dashboard runs code"
        if not re.search(rf"^ray=={re.escape(cluster['rayVersion'])} ", lock, re.MULTILINE):
            yield f"rayVersion {cluster['rayVersion']} is not the image's"
        if cluster.get("enableInTreeAutoscaling") and cluster["autoscalerOptions"].get("version") != "v2":
            yield "autoscalerOptions.version is not v2"
        head = cluster["headGroupSpec"]
        if head["rayStartParams"].get("num-cpus") != "0":
            yield "the head takes actors: num-cpus is not 0"
        if head.get("enableIngress") or head.get("serviceType", "ClusterIP") != "ClusterIP":
            yield "the head's service is exposed"
        if not seconds_to_stop(cluster) < head["template"]["spec"]["terminationGracePeriodSeconds"]:
            yield "terminationGracePeriodSeconds: the head ends before its run is to have stopped"
        for group in cluster["workerGroupSpecs"]:
            if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield f"{group['groupName']}: replicas is not between minReplicas and maxReplicas"
    for group in groups(objects):
        yield from group_faults(group)


def group_faults(group: dict[str, Any]) -> Iterator[str]:
    name, spec = group.get("groupName", "head"), group["template"]["spec"]
    [container] = spec["containers"]
    if spec.get("restartPolicy", "Never") != "Never":
        yield f"{name}: autoscaler v2 takes restartPolicy Never only"
    if group.get("resources") and set(group["rayStartParams"]) & {"num-cpus", "num-gpus", "resources"}:
        yield f"{name}: resources and rayStartParams both say what the node has"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container["resources"].get(kind, {})):
            yield f"{name}: no {kind} of cpu and memory"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    paths = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    shm = paths.get("/dev/shm", {}).get("emptyDir", {})
    if shm.get("medium") != "Memory":
        yield f"{name}: /dev/shm is not a memory volume"
        return
    store, size = int(group["rayStartParams"]["object-store-memory"]), bytes_of(shm["sizeLimit"])
    if not store < size < bytes_of(container["resources"]["limits"]["memory"]):
        yield f"{name}: the object store does not fit /dev/shm, or that not the memory limit, which counts it"


def security_faults(objects: Objects) -> Iterator[str]:
    """Kubernetes' "restricted" Pod Security Standard, and a root file system that is read-only."""
    for pod in pods(objects):
        spec, security = pod["spec"], pod["spec"].get("securityContext", {})
        name = spec["containers"][0]["name"]
        if not security.get("runAsNonRoot") or security.get("runAsUser") == 0:
            yield f"{name}: runs as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: no seccompProfile"
        if {key for key in spec if key.startswith("host")}:
            yield f"{name}: uses the host's namespaces"
        if name != "ray-head" and spec.get("automountServiceAccountToken", True):
            yield f"{name}: holds a token of the Kubernetes API"
        for volume in spec["volumes"]:
            if not set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}:
                yield f"{name}: volume {volume['name']}"
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            yield from container_faults(container["name"], container.get("securityContext", {}))
    for cluster in clusters(objects):
        if cluster["enableInTreeAutoscaling"]:
            yield from container_faults("autoscaler", cluster["autoscalerOptions"].get("securityContext", {}))


def container_faults(name: str, security: dict[str, Any]) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation", True) or security.get("privileged"):
        yield f"{name}: may gain privileges"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name}: keeps capabilities"
    if not security.get("readOnlyRootFilesystem"):
        yield f"{name}: can change its image's files"


def secret_faults(objects: Objects) -> Iterator[str]:
    if of_kind(objects, "Secret"):
        yield "a Secret is in the manifests"
    for pod in pods(objects):
        for variable in pod["spec"]["containers"][0].get("env", []):
            if re.search(r"TOKEN|KEY|SECRET|PASSWORD", variable["name"]) and "value" in variable:
                yield f"the value of {variable['name']} is in the manifests"


def exposure_faults(objects: Objects) -> Iterator[str]:
    """Pods that judge what a model wrote, or answer strangers, only read the volume and hold no token."""
    exposed = [*groups(of_kind(objects, "RayService"))]
    exposed += [g for g in groups(objects) if '"scorer"' in g["rayStartParams"].get("resources", "")]
    for group in exposed:
        name, spec = group.get("groupName", "head"), group["template"]["spec"]
        claims = {volume["name"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
        for container in spec["containers"]:
            for mount in container["volumeMounts"]:
                if mount["name"] in claims and not mount.get("readOnly"):
                    yield f"{name}: may write to {mount['mountPath']}"
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    yield f"{name}: holds {variable['name']}"
            if any("secretRef" in source for source in container.get("envFrom", [])):
                yield f"{name}: holds all of a Secret"


def network_faults(objects: Objects) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy")
    key, value = PART
    denies = [policy for policy in policies if not {"ingress", "egress"} & set(policy["spec"])]
    if not any(
        policy["spec"]["podSelector"] == {"matchLabels": {key: value}}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        for policy in denies
    ):
        yield "no policy denies everything"
    for pod in pods(objects):
        if pod["metadata"]["labels"].get(key) != value:
            yield "a pod is out of the policies' reach"
    for policy in policies:
        name = policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from") or {} in rule["from"]:
                yield f"{name}: lets everybody in"
            outside = [peer for peer in rule.get("from", []) if "namespaceSelector" in peer]
            operator = [peer for peer in outside if "podSelector" in peer]
            dashboard = not rule.get("ports") or any(port["port"] == 8265 for port in rule["ports"])
            if dashboard and len(operator) < len(outside):
                yield f"{name}: the dashboard is open to a whole namespace"
            for peer in rule.get("from", []):
                pods_here = "podSelector" in peer and "namespaceSelector" not in peer
                if pods_here and CLUSTER not in labels_of(peer["podSelector"]):
                    yield f"{name}: lets the pods of other clusters in"
    for cluster in clusters(objects):
        yield from reach_faults(cluster, policies)


def labels_of(selector: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = selector.get("matchLabels", {})
    return labels


def reach_faults(cluster: dict[str, Any], policies: Objects) -> Iterator[str]:
    """The pods of a cluster carry one label, and a policy lets them, and none but them, reach each other."""
    specs = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    labels = [spec["template"]["metadata"]["labels"] for spec in specs]
    if len(names := {one.get(CLUSTER) for one in labels}) > 1 or None in names:
        yield f"the pods of a cluster differ in the label {CLUSTER}, or lack it"
        return
    own = {(CLUSTER, name) for name in names}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        open_to = [
            labels_of(peer.get("podSelector", {})).items()
            for policy in policies
            if own <= (selected := labels_of(policy["spec"]["podSelector"])).items()
            and all(selected.items() <= one.items() for one in labels)
            for rule in policy["spec"].get(direction, [])
            if "ports" not in rule
            for peer in rule.get(peers, [])
        ]
        if not any(own <= peer and all(peer <= one.items() for one in labels) for peer in open_to):
            yield f"no policy opens the pods of cluster {labels[0][CLUSTER]} to each other ({direction})"


def queue_faults(objects: Objects) -> Iterator[str]:
    """What Kueue's webhook refuses, and queues that do not exist or are too small."""
    for job in of_kind(objects, "RayJob"):
        labels, [cluster] = job["metadata"]["labels"], clusters([job])
        if queue := labels.get("kueue.x-k8s.io/queue-name"):
            if queue not in {item["metadata"]["name"] for item in of_kind(objects, "LocalQueue")}:
                yield f"no LocalQueue {queue}"
            if cluster["enableInTreeAutoscaling"]:
                yield "Kueue refuses clusters that scale"
            if len(cluster["workerGroupSpecs"]) > 7:
                yield "Kueue takes seven worker groups at most"
            [quota] = of_kind(objects, "ClusterQueue")
            [flavor] = quota["spec"]["resourceGroups"][0]["flavors"]
            for resource in flavor["resources"]:
                if requested(job, resource["name"]) > parse_quantity(resource["nominalQuota"]):
                    yield f"the queue has too little {resource['name']} for the job"
        if queue := labels.get("volcano.sh/queue-name"):
            if queue not in {item["metadata"]["name"] for item in of_kind(objects, "Queue")}:
                yield f"no Queue {queue}"
            if labels.get("ray.io/scheduler-name") != "volcano":
                yield "the job does not name Volcano as its scheduler"


def requested(job: dict[str, Any], resource: str) -> Any:
    """How much all pods of a job request at once."""
    counted = [(pod, 1) for pod in pods([job])]
    for group in next(clusters([job]))["workerGroupSpecs"]:
        counted.append((group["template"], group["replicas"] - 1))
    return sum(
        count * parse_quantity(pod["spec"]["containers"][0]["resources"]["requests"].get(resource, "0"))
        for pod, count in counted
    )


def monitor_faults(objects: Objects) -> Iterator[str]:
    """What is scraped is let through to Prometheus, and is a port of the head."""
    monitors, policies = of_kind(objects, "PodMonitor"), of_kind(objects, "NetworkPolicy")
    scraped = {end["port"] for monitor in monitors for end in monitor["spec"]["podMetricsEndpoints"]}
    rules = [rule for policy in policies for rule in policy["spec"].get("ingress", [])]
    allowed = {port["port"] for rule in rules for port in rule.get("ports", [])}
    for cluster in clusters(objects):
        [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        exposed = {port["name"] for port in head["ports"]}
        for port in sorted(scraped - allowed):
            yield f"no policy lets Prometheus reach port {port}"
        for port in sorted(scraped - exposed):
            yield f"the head has no port {port}"


def faults(objects: Objects) -> list[str]:
    """Everything that is wrong."""
    rules = (job_faults, cluster_faults, security_faults, secret_faults, exposure_faults, network_faults)
    return [fault for rule in (*rules, queue_faults, monitor_faults) for fault in rule(objects)]


def main() -> None:
    found = faults(list(yaml.safe_load_all(sys.stdin)))
    for fault in found:
        print(fault)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
