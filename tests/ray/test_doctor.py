"""`d1ray doctor`: what it finds on a real cluster, and what it says is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d1ray.config.recipe import load_config
from d1ray.programs.doctor import Finding, _storage, examine
from d1ray.tasks import landlock


def outcomes(findings: list) -> dict[str, str]:
    return {finding.check: finding.outcome for finding in findings}


def test_a_cluster_that_can_run_the_recipe_passes(ray_cluster: None, tmp_path: Path) -> None:
    findings = examine(load_config("sudoku-tiny", [f"run_dir={tmp_path / 'runs' / 'a'}"]))
    found = outcomes(findings)
    assert found.pop("checks") == ("ok" if landlock.version() else "warning"), findings
    assert set(found.values()) == {"ok"}, findings
    assert set(found) == {
        *("authentication", "resources", "versions", "node", "storage", "network", "object store", "estimate")
    }
    assert not list((tmp_path / "runs").iterdir())


def test_missing_resources_are_named_with_the_settings_that_ask_for_them(
    ray_cluster: None, tmp_path: Path
) -> None:
    asked = ["cluster.learner_gpus=1", "cluster.generator_resources={spot: 1}", f"run_dir={tmp_path / 'a'}"]
    said = [f.said for f in examine(load_config("sudoku-tiny", asked)) if f.outcome == "failed"]
    assert any("needs 1 GPU" in line and "cluster has 0" in line for line in said)
    assert any("needs 2 spot (2 cluster.generators x 1)" in line for line in said)
    assert any("no node has {'CPU': 0.5, 'GPU': 1.0} for one learner rank" in line for line in said)


def test_a_run_folder_that_cannot_be_written_is_a_failure(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    findings = examine(load_config("sudoku-tiny", [f"run_dir={tmp_path / 'file' / 'runs' / 'a'}"]))
    assert outcomes(findings)["storage"] == "failed"


def test_a_node_for_scorers_alone_need_not_write_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each node's probe sees the file; it is asked to write one unless only scorers are placed there."""
    asked: dict[str, bool] = {}

    class Seeing:
        def __init__(self, node: str) -> None:
            self.node, self.sees = node, self

        def remote(self, folder: Path, name: str, said: str, writes: bool) -> str:
            asked[self.node] = writes
            return "" if (folder / name).read_text() == said else "another"

    monkeypatch.setattr("ray.get", lambda answers, timeout: answers)
    places = ["cluster.scorer_resources={scorer: 1}", "cluster.learner_resources={learner: 1}"]
    config = load_config("sudoku-tiny", [f"run_dir={tmp_path / 'a'}", *places])
    has = {"generators": {"generator": 1}, "scorers": {"scorer": 1}, "both": {"scorer": 1, "learner": 1}}
    nodes = [{"NodeID": name, "Resources": {"CPU": 1, **resources}} for name, resources in has.items()]
    [finding] = _storage(config, nodes, {name: Seeing(name) for name in has})
    assert asked == {"generators": True, "scorers": False, "both": True}
    assert finding == Finding("storage", "ok", f"2 node(s) read and write {tmp_path}")


def test_the_command_fails_where_a_check_does(no_process_left_behind: None, tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "d1ray", "doctor", "sudoku-tiny", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, "cluster.learner_gpus=4"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "needs 4 GPU" in " ".join(done.stdout.split())
