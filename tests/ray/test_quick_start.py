"""The commands of the quick start, in its order, as a person types them; runs are made short."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 400
SHORT = ["rl.steps=1", "rl.validate_every=1", "rl.prompts_per_step=2", "evaluation.examples=8"]


def typed(page: str) -> list[str]:
    """The commands of a page's consoles."""
    consoles = re.findall(r"^```console\n(.*?)^```", (REPOSITORY / page).read_text(), re.M | re.S)
    return [line.removeprefix("$ ") for console in consoles for line in console.splitlines()]


@pytest.mark.timeout(2400)
def test_every_command_of_the_quick_start_works(
    no_process_left_behind: None, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    # The commands choose folder and algorithm themselves.
    short = [o for o in small_run(tmp_path, *SHORT) if not o.startswith(("run_dir=", "rl.algorithm."))]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    said: dict[str, str] = {}
    commands = typed("docs/index.md")
    for command in commands:
        words, folder = shlex.split(command), tmp_path
        if words == ["make", "demo"]:  # of the checkout, so that it is told where to write
            overrides = shlex.join([*short, "cluster.dashboard=true", f"run_dir={tmp_path}/demo"])
            words, folder = ["make", "demo", f"ARGS={overrides}"], REPOSITORY
        elif words[:2] == ["d1ray", "train"]:
            words += short
        elif words[1] == "serve":
            continue  # it does not end by itself: test_serve.py
        elif words[1] == "evaluate":
            words.append("evaluation.examples=8")
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment | {"PATH": programs},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout
    assert {"make demo", "d1ray recipes", "d1ray doctor sudoku-tiny"} < said.keys() and len(said) >= 8
    for run in ("demo", "runs/mine", "runs/wd1"):
        assert {"summary.json", "report.html", "config.yaml"} <= {p.name for p in (tmp_path / run).iterdir()}
    assert "solved" in said["make demo"] and "sudoku-tiny" in said["d1ray recipes"]
    assert (tmp_path / "compare.html").stat().st_size > 50_000
    assert json.loads(said["d1ray evaluate runs/mine --task sudoku --json"])["n"] == 8
    assert (tmp_path / "model" / "model.safetensors").is_file()
