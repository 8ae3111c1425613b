"""`d1ray evaluate --output`: killed and started again it repeats nothing and gives the same table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from d1ray import cli

pytestmark = pytest.mark.usefixtures("no_process_left_behind")


def command(model: Path, output: Path, *more: str) -> list[str]:
    arguments = ["evaluate", str(model), "--task", "sudoku", "--length", "16", "--length", "20"]
    settings = ["evaluation.batch_size=4", "cluster.generator_cpus=0.25", "cluster.scorer_cpus=0.25"]
    settings += ["data.max_prompt_length=30", "task.template='{puzzle}'", "cluster.deadline_s=120"]
    arguments += ["--examples", "32", "--output", str(output), *more, *settings]
    return [sys.executable, "-m", "d1ray", *arguments]


def evaluated(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Runs the command in this process, on the session's cluster."""
    monkeypatch.setattr(sys, "argv", ["d1ray", *command[3:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def scores(output: Path) -> list[dict[str, object]]:
    cells = json.loads((output / "results.json").read_text())
    return [{k: v for k, v in cell.items() if k != "tokens_per_s"} for cell in cells]


@pytest.mark.timeout(700)
def test_a_killed_evaluation_goes_on_and_gives_the_same_table(
    ray_cluster: None, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(start, killed), env=environment, start_new_session=True)
    deadline = time.monotonic() + 180
    while len(list(killed.glob("*/batch-*"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    finished = {file: file.stat().st_mtime_ns for file in killed.glob("*/batch-*.parquet")}
    assert 3 <= len(finished) < 16
    assert not (killed / "results.json").exists()
    subprocess.run(command(start, killed), env=environment, check=True, timeout=240)
    evaluated(monkeypatch, command(start, whole))
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(list(killed.glob("*/batch-*.parquet"))) == 16
    assert scores(killed) == scores(whole)


@pytest.mark.timeout(300)
def test_several_samples_give_pass_at_k_whatever_the_number_of_generators(
    ray_cluster: None, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for generators in (1, 2):
        more = ["--samples", "4", "evaluation.sampling.temperature=1.0", f"cluster.generators={generators}"]
        output = tmp_path / str(generators)
        evaluated(monkeypatch, command(start, output, *more))
    one, two = scores(tmp_path / "1"), scores(tmp_path / "2")
    assert one == two
    for cell in one:
        shares = [share["value"] for share in cell["pass_at"].values()]
        assert list(cell["pass_at"]) == ["1", "2", "4"]
        assert shares == sorted(shares)
        assert shares[0] == pytest.approx(cell["accuracy"])
        assert (cell["n"], cell["samples"]) == (32, 4)
    files = [sorted((tmp_path / str(n)).glob("sudoku-20/batch-*.parquet")) for n in (1, 2)]
    tables = [[pq.read_table(file, columns=["rollout", "text"]) for file in own] for own in files]
    assert len(tables[0]) == 32
    assert all(a.equals(b) for a, b in zip(*tables, strict=True))
    assert tables[0][0]["rollout"].to_pylist() == [0, 1, 2, 3]
    assert len(set(tables[0][0]["text"].to_pylist())) > 1  # at temperature 1 samples differ
    assert "| sudoku 20 | 4 | pass@1 " in (tmp_path / "1" / "table.md").read_text()
