"""Objects are lost with a node, or a node has no room for more: the run waits, and ends in the same bits."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apart import found_apart
from small_runs import trained
from warm_workers import warm_workers

from actors.call import Call
from d1ray.config.recipe import load_config
from d1ray.programs import training
from d1ray.run.interrupt import Patience
from d1ray.run.progress import Progress

STEPS, DEADLINE_S, WAIT_S = 20, 25, 120
SETTINGS = [
    f"rl.steps={STEPS}",
    "rl.validate_every=100",
    "rl.checkpoint_every=3",
    "evaluation.examples=4",
    "cluster.generators=1",
    "cluster.generator_cpus=0.25",
    "cluster.scorer_cpus=0.25",
    "cluster.learner_cpus=0.25",
    "cluster.generator_resources={edge: 0.1}",
    "cluster.scorer_resources={edge: 0.1}",
    "cluster.learner_resources={middle: 0.1}",
]
# Nothing is spilled, the disk counts as full, and a table of four tiny rollouts is an object of the store.
FULL_DISK = {
    "automatic_object_spilling_enabled": False,
    "local_fs_capacity_threshold": 1e-9,
    "max_direct_call_object_size": 4000,
}
STORE = 100 * 2**20
FOR_TABLES = 300_000  # bytes: room for a step's tables, but not for the weights, which take 740,000


class Holder:
    def hold(self, size: int) -> Any:
        return np.ones(size, np.uint8), None


class Ballast:
    """Objects that fill the store of the node with the resource ``place``."""

    def __init__(self, place: str):
        import ray

        self.holder = ray.remote(Holder).options(num_cpus=0, resources={place: 0.01}).remote()
        ray.get(self.holder.__ray_ready__.remote(), timeout=WAIT_S)
        self.held: list[Any] = []

    def fill(self, room: int) -> None:
        """Leaves ``room`` bytes, about: a multiple of 100,000."""
        for _ in range(2):
            for size in (8_000_000, 1_000_000, 100_000, *(() if room else (10_000, 4_100))):
                while self._has_room_for(size):
                    pass
            time.sleep(0.5)  # what has just been released is free a little later
        del self.held[len(self.held) - room // 100_000 :]

    def _has_room_for(self, size: int) -> bool:
        import ray

        held, done = self.holder.hold.options(num_returns=2).remote(size)
        try:
            ray.get(done, timeout=WAIT_S)
        except ray.exceptions.OutOfDiskError:
            return False
        self.held.append(held)
        return True

    def drop(self) -> None:
        self.held.clear()


class Cluster:
    """A node called middle, which the calling process joins as the driver, and others called edge."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE}
        head |= {"resources": {"middle": 1}, "_system_config": FULL_DISK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False, configure_logging=False)

    def add_edge(self) -> Any:
        return self.cluster.add_node(num_cpus=1, resources={"edge": 1}, object_store_memory=STORE)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


class Faults:
    """An ``interrupt`` that never is one: the main thread, between two looks at its rollouts, does the acts
    in turn, and goes slowly until they are done. An act returns None to be tried again, or a thread, which
    ends before the next one begins."""

    def __init__(self, *acts: Callable[[], threading.Thread | None]):
        self.left, self.last = list(acts), threading.Thread()

    def __call__(self) -> bool:
        if self.left and not self.last.is_alive() and (begun := self.left[0]()):
            self.left.pop(0)
            self.last = begun
        if self.left:
            time.sleep(0.3)
        return False


def lines(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0  # step 0 is one, too


def full(ballast: Ballast, room: int, notes: list[str], found: list[list[str]]) -> threading.Thread:
    """Fills a store until a second after the run has noted it, and adds what it noted to ``found``."""
    before = len(notes)
    ballast.fill(room)

    def wait() -> None:
        end = time.monotonic() + WAIT_S
        while len(notes) == before and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        ballast.drop()
        found.append(notes[before:])

    waiting = threading.Thread(target=wait)
    waiting.start()
    return waiting


def noting(overrides: list[str], run_dir: Path, notes: list[str], interrupt: Callable[[], bool]) -> Any:
    """The weights after the run's diffu-GRPO."""

    class Noted(Progress):
        def note(self, text: str) -> None:
            super().note(text)
            if any(said in text for said in ("object store is full", "no room", "died")):
                notes.append(text)

    # Only where rollouts are waited for is it asked, not where the learner is.
    training.Patience = lambda asked, seconds: Patience(lambda: False, seconds)
    return trained(load_config("sudoku-tiny", [*overrides, f"run_dir={run_dir}"]), interrupt, Noted())


def command_in_a_full_store(
    overrides: list[str], run_dir: Path, address: str, ballast: Ballast
) -> subprocess.CompletedProcess[str]:
    """`d1ray train`, with a store that fills up after its first step and stays so."""
    command = [sys.executable, "-m", "d1ray", "train", "sudoku-tiny", *overrides, f"run_dir={run_dir}"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    process = subprocess.Popen(
        [*command, f"cluster.deadline_s={DEADLINE_S}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + WAIT_S
    while lines(run_dir) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # or a fast run would be over
    ballast.fill(FOR_TABLES)
    process.send_signal(signal.SIGCONT)
    while process.poll() is None and time.monotonic() < end + WAIT_S:
        ballast.fill(FOR_TABLES)  # what the run itself has freed
    ballast.drop()
    process.kill()
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def scenarios(overrides: list[str], folder: Path, found: dict[str, Any]) -> None:
    with warm_workers(folder), closing(Cluster()) as cluster:
        scenarios_on(cluster, overrides, folder, found)


def scenarios_on(cluster: Cluster, overrides: list[str], folder: Path, found: dict[str, Any]) -> None:
    edge, run = cluster.add_edge(), folder / "run"
    at_the_middle, at_the_edge = Ballast("middle"), Ballast("edge")
    found["ended"] = command_in_a_full_store(overrides, run, cluster.cluster.address, at_the_middle)
    found["steps before"] = lines(run)

    notes: list[str] = []
    noted: list[list[str]] = []
    lost: list[int] = []

    def lose_tables() -> threading.Thread | None:
        """Kills the node that holds tables of groups that wait for others of their step."""
        calls = [thing for thing in gc.get_objects() if isinstance(thing, Call)]
        if waiting := [call for call in calls if call.metadata and call.table]:
            lost.extend(call.request.prompts[0].group_id for call in waiting)
            cluster.add_edge()
            cluster.kill(edge)
        return threading.Thread() if waiting else None

    faults = Faults(
        lambda: full(at_the_middle, 0, notes, noted),
        lambda: full(at_the_middle, FOR_TABLES, notes, noted),
        lambda: full(at_the_edge, 0, notes, noted),
        lambda: full(at_the_edge, FOR_TABLES, notes, noted),
        lose_tables,
    )
    found["disturbed"] = noting(overrides, run, notes, faults)
    found |= {"noted": noted, "lost": lost, "left": len(faults.left)}


@pytest.fixture(scope="module")
def found(
    no_process_left_behind: None, start: Path, small_run: Callable[..., list[str]], tmp_path_factory: Any
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("store")
    overrides = [o for o in small_run(folder / "unused") if not o.startswith(("run_dir=", "cluster."))]
    environment = {
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of ballast that did not fit
    }
    settings = [*overrides, *SETTINGS]
    found = found_apart(scenarios, settings, folder=folder, within_s=570, environment=environment)
    return found | {"run": folder / "run"}


@pytest.mark.timeout(600)
def test_a_store_that_stays_full_ends_the_command_with_one_line(found: dict[str, Any]) -> None:
    ended = found["ended"]
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("d1ray: error: learner rank 0 has no room for the policy's weights")
    assert "the object store is full" in line and "--object-store-memory" in line
    assert "the same command goes on from it" in line
    assert 1 < found["steps before"] < STEPS


@pytest.mark.timeout(600)
def test_a_store_that_is_full_for_a_while_delays_the_run_and_changes_no_bit(
    found: dict[str, Any], undisturbed: Callable[[int], Any]
) -> None:
    """At a generator's node or the learner's, with and without room for rollouts."""
    assert found["left"] == 0
    learning, publishing, generating, loading = found["noted"]
    # Objects above 4,000 bytes are stored: even what a rank says of a full store may find no room there.
    assert re.match("learning: there is no room for rollouts of step|learner rank 0 died", learning[0])
    assert any(note.startswith("publishing: the object store is full") for note in learning + publishing)
    for notes in (generating, loading):
        assert "at generator 0, scorer 0: the object store is full" in notes[0]
    expected, disturbed = undisturbed(STEPS), found["disturbed"]
    assert expected.keys() == disturbed.keys()
    assert all(torch.equal(expected[name], disturbed[name]) for name in expected)
    rows = (found["run"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(STEPS + 1))


@pytest.mark.timeout(600)
def test_rollouts_that_are_lost_with_their_node_are_generated_again(found: dict[str, Any]) -> None:
    """The same run's weights show that they were the same."""
    assert found["lost"]
    rows = [json.loads(row) for row in (found["run"] / "metrics.jsonl").read_text().splitlines()]
    step = rows[1 + found["lost"][0] // 4]
    assert step["reissued_calls"] >= len(found["lost"])
