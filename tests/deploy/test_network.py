"""Who may reach whom on Kubernetes: clusters of one namespace, side by side, under all their policies."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

OVERLAYS = Path(__file__).parents[2] / "deploy" / "kuberay" / "overlays"
FIELD = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
INSIDE, DASHBOARD, METRICS = 12345, 8265, 8080

Labels = dict[str, str]


class Namespace:
    """Pods by name, and the policies that apply to them. A later policy of the same name replaces one, as
    `kubectl apply` does; none may differ."""

    def __init__(self, *built: list[dict[str, Any]]):
        self.policies: dict[str, Any] = {}
        self.pods: dict[str, Labels] = {}
        for item in (item for objects in built for item in objects):
            name = item["metadata"]["name"]
            if item["kind"] == "NetworkPolicy":
                assert self.policies.setdefault(name, item["spec"]) == item["spec"], name
            if item["kind"] in ("RayCluster", *FIELD):
                spec = item["spec"]
                cluster = spec[FIELD[item["kind"]]] if item["kind"] in FIELD else spec
                self._add(f"{name} head", cluster["headGroupSpec"]["template"], "head")
                for group in cluster["workerGroupSpecs"]:
                    self._add(f"{name} {group['groupName']}", group["template"], "worker")
                if "submitterPodTemplate" in spec:
                    self._add(f"{name} submitter", spec["submitterPodTemplate"], None)

    def _add(self, name: str, pod: dict[str, Any], node_type: str | None) -> None:
        kuberay = {"ray.io/node-type": node_type, "ray.io/is-ray-node": "yes"} if node_type else {}
        self.pods[name] = pod["metadata"]["labels"] | kuberay

    def reaches(self, source: str, target: str, port: int) -> bool:
        """Whether one pod may open a connection to a port of another, none of which has a name."""
        return self._open(source, target, port, "Egress", "to") and self._open(
            target, source, port, "Ingress", "from"
        )

    def _open(self, own: str, other: str, port: int, kind: str, peers: str) -> bool:
        held = [
            spec
            for spec in self.policies.values()
            if kind in spec["policyTypes"] and matches(spec["podSelector"], self.pods[own])
        ]
        return not held or any(
            any(entry["port"] == port for entry in rule.get("ports", [{"port": port}]))
            and any(
                "podSelector" in peer
                and "namespaceSelector" not in peer
                and matches(peer["podSelector"], self.pods[other])
                for peer in rule.get(peers, [{"podSelector": {}}])
            )
            for spec in held
            for rule in spec.get(kind.lower(), [])
        )


def matches(selector: dict[str, Any], labels: Labels) -> bool:
    assert set(selector) <= {"matchLabels"}
    wanted: Labels = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


@pytest.fixture(scope="module")
def namespace(kustomize: Callable[[Path], list[dict[str, Any]]]) -> Namespace:
    """Two training runs, a cluster for jobs and a service. The second run is what docs/cluster.md makes."""
    train, serve, cluster = (kustomize(OVERLAYS / name) for name in ("gpu-8b", "gpu-serve", "gpu-cluster"))
    second = yaml.safe_load_all(yaml.safe_dump_all(train).replace("d1ray-train", "d1ray-math"))
    return Namespace(train, list(second), serve, cluster)


def test_pods_reach_those_of_their_own_cluster_and_no_others(namespace: Namespace) -> None:
    nodes = [name for name in namespace.pods if "submitter" not in name]
    assert len(nodes) == 4 + 4 + 2 + 4
    for source in nodes:
        for target in nodes:
            same = source.split()[0] == target.split()[0]
            for port in (INSIDE, DASHBOARD, METRICS, 6379, 8000):
                assert namespace.reaches(source, target, port) == same, (source, target, port)


def test_a_submitter_reaches_its_own_run_s_dashboard_and_nothing_else(namespace: Namespace) -> None:
    for submitter in ("d1ray-train submitter", "d1ray-math submitter"):
        own = submitter.replace("submitter", "head")
        for target in namespace.pods:
            for port in (INSIDE, DASHBOARD, METRICS):
                allowed = target == own and port == DASHBOARD
                assert namespace.reaches(submitter, target, port) == allowed, (submitter, target, port)
            assert not namespace.reaches(target, submitter, INSIDE)


def test_the_documented_command_makes_a_second_run() -> None:
    page = (OVERLAYS.parents[2] / "docs" / "cluster.md").read_text()
    assert re.search(r"sed 's/d1ray-train/d1ray-math/g", page)
