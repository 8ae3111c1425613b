"""What it costs to start: CPU seconds as ratios to `import torch` in the same run, and a scorer's memory."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROUNDS = 3
D1RAY = str(Path(sys.executable).with_name("d1ray"))
TORCH = [sys.executable, "-c", "import torch"]
STARTS = {  # what starts: its command, and the most of `import torch` that it may cost
    "--version": ([D1RAY, "--version"], 0.15),
    "--help": ([D1RAY, "--help"], 0.3),
    "recipes": ([D1RAY, "recipes"], 0.4),
    "a wrong setting": ([D1RAY, "train", "sudoku-tiny", "rl.stepz=1"], 0.4),
    "a wrong option of the algorithm": ([D1RAY, "train", "sudoku-tiny", "rl.algorithm.epsilon=x"], 0.4),
    "a model that is not there": ([D1RAY, "evaluate", "nowhere", "--task", "sudoku"], 0.4),
    "scorer": ([sys.executable, "-c", "import actors.scorer"], 0.4),
    "scorer, with Ray": ([sys.executable, "-c", "import ray, actors.scorer"], 0.8),
    "generator": ([sys.executable, "-c", "import actors.generator"], 2.6),
    "learner": ([sys.executable, "-c", "import actors.learner"], 2.6),
}


def cost(command: list[str]) -> float:
    """CPU seconds of a process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime


def test_the_cost_of_each_start() -> None:
    cost(TORCH)  # from disk, once
    print(f"\n{'start':32} {'CPU s':>6} {'ratio':>6} {'most':>5}")
    over = []
    for name, (command, most) in STARTS.items():
        cost(command)
        pairs = [(cost(command), cost(TORCH)) for _ in range(ROUNDS)]
        seconds, ratio = median(own for own, _ in pairs), median(own / torch for own, torch in pairs)
        print(f"{name:32} {seconds:6.2f} {ratio:6.2f} {most:5.2f}")
        if ratio > most:
            over.append(name)
    assert not over


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_scorer_takes_less_than_120_megabytes() -> None:
    taken = {}
    for modules in ("actors.scorer", "ray", "ray, pyarrow", "ray, actors.scorer"):
        code = f"import {modules}; print(open('/proc/self/status').read())"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        taken[modules] = int(said.partition("VmHWM:")[2].split()[0]) * 1024
        print(f"\nimport {modules}: {taken[modules] / 1e6:.0f} MB")
    assert taken["actors.scorer"] < 120e6
