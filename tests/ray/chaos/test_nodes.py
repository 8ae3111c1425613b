"""Whole nodes die and join: the run goes on on the others, and ends with the same weights."""

import json
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from apart import found_apart
from small_runs import trained
from warm_workers import warm_workers

from d1ray.config.recipe import load_config
from d1ray.run import checkpoint

STEPS, SLOW_S = 20, 120
SETTINGS = [
    "cluster.generator_cpus=0.25",
    "cluster.scorer_cpus=0.25",
    "cluster.learner_cpus=0.25",
    "cluster.generator_resources={generators: 1}",
    "cluster.learner_resources={learners: 1}",
    "cluster.deadline_s=90",
]


class Nodes:
    """A cluster of several raylets on this machine, which the calling process joins as the driver."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False, configure_logging=False)

    def add(self, **resources: float) -> Any:
        return self.cluster.add_node(num_cpus=1, resources=resources, object_store_memory=200 * 2**20)

    def tell_to_go(self, node: Any) -> None:
        """As a cloud does before it takes a spot node back."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        end_ms = int((time.time() + 300) * 1000)
        gcs = GcsClient(address=self.cluster.address)
        assert gcs.drain_node(node.node_id, reason, "taken back", end_ms)[0]

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


def holds(node: Any, title: str) -> bool:
    """Whether an actor of the node has a title that begins so."""
    from ray._private.state import actors

    for actor in actors().values():
        if actor["Address"]["NodeID"] == node.node_id and actor["State"] == "ALIVE":
            with suppress(psutil.Error):  # it has just ended
                if " ".join(psutil.Process(actor["Pid"]).cmdline()).startswith(title):
                    return True
    return False


def train(
    overrides: list[str], run_dir: Path, interrupt: Callable[[], bool] = lambda: False
) -> dict[str, torch.Tensor]:
    config = load_config("sudoku-tiny", [*overrides, f"run_dir={run_dir}", *SETTINGS])
    return dict(trained(config, interrupt))


def acts(run_dir: Path, *actions: tuple[int, Callable[[], bool]]) -> Callable[[], bool]:
    """An ``interrupt`` that never is one: from so many lines of metrics on it tries each action until it
    returns true, and slows the driver down meanwhile. It runs in the main thread, where nodes have to be
    made."""
    left, end = list(actions), time.monotonic() + SLOW_S

    def interrupt() -> bool:
        file = run_dir / "metrics.jsonl"
        lines = len(file.read_text().splitlines()) if file.exists() else 0
        left[:] = [(after, act) for after, act in left if lines < after or not act()]
        if any(lines >= after for after, _ in left) and time.monotonic() < end:
            time.sleep(0.3)
        return False

    return interrupt


def scenarios(overrides: list[str], folder: Path, found: dict[str, Any]) -> None:
    with warm_workers(folder), closing(Nodes()) as nodes:
        scenarios_on(nodes, overrides, folder, found)


def scenarios_on(nodes: Nodes, overrides: list[str], folder: Path, found: dict[str, Any]) -> None:
    generating = [nodes.add(generators=1)]
    learning = [nodes.add(learners=1), nodes.add(learners=1)]
    # Another generator joins when its node does, and goes on alone when the first one's node dies.
    run = folder / "generator"
    joined: list[Any] = []

    def add() -> bool:
        joined.append(nodes.add(generators=1))
        return True

    def kill_the_first() -> bool:
        if not (joined and holds(joined[0], "ray::Generator.generate")):
            return False
        nodes.kill(generating.pop())
        return True

    more = ["rl.checkpoint_every=10", "rl.validate_every=10", "cluster.generators=1"]
    both = acts(run, (2, add), (3, kill_the_first))
    growing = [*overrides, *more, f"rl.steps={STEPS}", "cluster.max_generators=2"]
    found["generator"] = train(growing, run, both)
    found["joined"] = bool(joined) and not generating

    run = folder / "learner"
    killed: list[Any] = []

    def tell_the_learner_s_to_go() -> bool:
        killed.extend(node for node in learning if holds(node, "ray::Learner"))
        nodes.tell_to_go(killed[0])
        return True

    def kill_it_once_a_checkpoint_is_there() -> bool:
        saved = checkpoint.newest_step(run / "checkpoints" / "rl")
        if saved:
            found["saved before"] = saved
            nodes.kill(killed[0])
        return saved > 0

    told = acts(run, (2, tell_the_learner_s_to_go), (3, kill_it_once_a_checkpoint_is_there))
    seldom = ["rl.checkpoint_every=100", "rl.validate_every=100"]  # but for the node that goes
    found["learner"] = train([*overrides, *seldom, "rl.steps=6", "cluster.generators=1"], run, told)
    found["killed"] = len(killed) == 1

    # The place of a generator and of the learner is found anew, on the third node that has both.
    run = folder / "colocated"
    shared = [nodes.add(generators=1, learners=1) for _ in range(3)]
    lost: list[Any] = []

    def kill_the_shared_one() -> bool:
        lost.extend(node for node in shared if holds(node, "ray::Learner"))
        nodes.kill(lost[0])
        return True

    colocated = [*overrides, "rl.steps=4", "cluster.generators=2", "cluster.colocated=true"]
    found["colocated"] = train(colocated, run, acts(run, (3, kill_the_shared_one)))
    found["lost"] = len(lost) == 1


@pytest.fixture(scope="module")
def found(
    no_process_left_behind: None, start: Path, small_run: Callable[..., list[str]], tmp_path_factory: Any
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("nodes")
    overrides = [o for o in small_run(folder / "unused") if not o.startswith(("run_dir=", "cluster."))]
    seen_dead_soon = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
    found = found_apart(scenarios, overrides, folder=folder, within_s=420, environment=seen_dead_soon)
    return found | {"folder": folder}


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.timeout(480)
def test_a_generator_joins_with_its_node_and_takes_over_when_the_other_s_node_dies(
    found: dict[str, Any], undisturbed: Callable[[int], Any]
) -> None:
    assert found["joined"]
    assert identical(found["generator"], undisturbed(STEPS))


@pytest.mark.timeout(480)
def test_the_learner_saves_when_its_node_has_to_go_and_is_rebuilt_elsewhere_when_that_dies(
    found: dict[str, Any], undisturbed: Callable[[int], Any]
) -> None:
    assert found["killed"] and 0 < found["saved before"] < 6
    assert identical(found["learner"], undisturbed(6))
    rows = (found["folder"] / "learner" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(7))


@pytest.mark.timeout(480)
def test_colocated_actors_find_another_place_when_their_node_dies(
    found: dict[str, Any], undisturbed: Callable[[int], Any]
) -> None:
    assert found["lost"]
    assert identical(found["colocated"], undisturbed(4))
