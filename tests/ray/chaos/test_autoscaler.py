"""Ray's own autoscaler adds a node when a pool may grow, and a generator joins there."""

import gc
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import found_apart
from small_runs import trained

from actors.placement import check_resources
from d1ray.config.recipe import load_config

STEPS, WAIT_S = 12, 240
HEAD = "f" * 51 + "00000"  # how Ray's provider of nodes on this machine calls the head
SETTINGS = [
    f"rl.steps={STEPS}",
    "rl.checkpoint_every=1000",
    "rl.validate_every=1000",
    "cluster.generators=1",
    "cluster.generator_cpus=0.25",
    "cluster.scorer_cpus=0.25",
    "cluster.learner_cpus=0.25",
    "cluster.generator_resources={generators: 1}",
]


def autoscaling(address: str) -> dict[str, Any]:
    """A configuration as of `ray up`: a head for one generator, and up to two nodes for one more each."""
    nodes = {
        "ray.head.default": {"resources": {"CPU": 2, "generators": 1}, "max_workers": 0, "node_config": {}},
        "generating": {
            "resources": {"CPU": 1, "generators": 1, "object_store_memory": 100 * 2**20},
            "min_workers": 0,
            "max_workers": 2,
            "node_config": {},
        },
    }
    commands = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        **{f"{name}_commands": [] for name in (*commands, "initialization")},
        **{"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": []},
        "cluster_name": "d1ray",
        "max_workers": 2,
        "provider": {
            "type": "external",  # "fake_multinode" needs a file that Ray's wheel does not have
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": nodes,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 1,
    }


class Workers:
    """An ``interrupt`` that never is one: it notes which generators have been at work, and slows the driver
    down until that are two."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.end = time.monotonic() + WAIT_S

    def __call__(self) -> bool:
        from actors.buffer import RolloutBuffer

        if len(self.seen) < 2 and time.monotonic() < self.end:
            for thing in gc.get_objects():
                if isinstance(thing, RolloutBuffer):
                    self.seen |= {call.generator for call in thing.running.values()}
            time.sleep(0.3)
        return False


def nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def scenarios(overrides: list[str], address: str, folder: Path, found: dict[str, Any]) -> None:
    import ray

    def config(run: str, *more: str) -> Any:
        return load_config("sudoku-tiny", [*overrides, *more, f"run_dir={folder / run}"])

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        trained(config("alone", "rl.steps=1"))
        found["nodes without need"] = nodes()
        workers = Workers()
        found["grown"] = trained(config("grown", "cluster.max_generators=2"), workers)
        found["nodes grown"], found["generators"] = nodes(), workers.seen

        wanted = [f"cluster.address={address}", "cluster.generators=3", f"cluster.placement_s={WAIT_S}"]
        check_resources(config("wanted", *wanted), learner=True)
        found["nodes asked for"] = nodes()
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def found(
    started_cluster: Callable[..., Any],
    start: Path,
    small_run: Callable[..., list[str]],
    tmp_path_factory: Any,
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("autoscaler")
    cluster = started_cluster(
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=HEAD,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
    )
    (folder / "cluster.json").write_text(json.dumps(autoscaling(cluster.address)))
    head = ["--num-cpus=2", '--resources={"generators": 1}']
    cluster.start(*head, f"--autoscaling-config={folder / 'cluster.json'}")
    overrides = [o for o in small_run(folder / "unused") if not o.startswith(("run_dir=", "cluster."))]
    settings = [*overrides, *SETTINGS]
    results = found_apart(scenarios, settings, cluster.address, folder=folder, within_s=570)
    status = ["ray", "status", "--address", cluster.address]
    done = subprocess.run(status, env=cluster.environment, capture_output=True, text=True, timeout=60)
    return results | {"status": done.stdout}


@pytest.mark.timeout(600)
def test_a_generator_joins_on_a_node_that_the_autoscaler_adds_and_changes_no_bit(
    found: dict[str, Any], undisturbed: Callable[[int], Any]
) -> None:
    assert found["nodes without need"] == 1
    assert found["generators"] == {0, 1} and found["nodes grown"] == 2
    expected = undisturbed(STEPS)
    assert found["grown"].keys() == expected.keys()
    assert all(torch.equal(found["grown"][name], tensor) for name, tensor in expected.items())


@pytest.mark.timeout(600)
def test_what_a_run_needs_is_asked_of_the_autoscaler_and_the_request_withdrawn(found: dict[str, Any]) -> None:
    assert found["nodes asked for"] == 3
    asked = found["status"].split("From request_resources:")[1].split("Pending Demands")[0]
    assert asked.strip() == "(none)"
