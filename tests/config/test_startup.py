"""What must not be loaded: settings, the command line and scorers start without torch."""

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "ray",
    "datasets",
    "peft",
    "accelerate",
    "sympy",
    "math_verify",
    "tensorboard",
}


def loaded(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after ``code``."""
    report = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


RECIPES = """
from d1ray.config.recipe import load_config, recipe_names
for name in recipe_names():
    load_config(name)
"""
WRONG = """
import sys
from d1ray.cli import main
sys.argv = ["d1ray", *{arguments}]
try:
    main()
except SystemExit as ended:
    assert ended.code == 2, ended.code
"""


@pytest.mark.parametrize(
    ("code", "also"),
    [
        ("import d1ray.config", {"pydantic", "numpy", "pyarrow"}),
        ("import d1ray.cli", {"pydantic", "numpy", "pyarrow", "yaml"}),
        ("from d1ray.config.run import Config", {"numpy", "pyarrow"}),
        (RECIPES, {"pyarrow"}),
        (WRONG.format(arguments=["train", "sudoku-tiny", "rl.stepz=3"]), {"pyarrow"}),
        (WRONG.format(arguments=["train", "sudoku-tiny", "rl.algorithm.epsilon=x"]), {"pyarrow"}),
        (WRONG.format(arguments=["evaluate", "nowhere", "--task", "sudoku"]), {"pyarrow"}),
        (WRONG.format(arguments=["serve", "nowhere"]), {"pyarrow", "fastapi"}),
        (WRONG.format(arguments=["score", "--task", "chess", "x.jsonl"]), {"pyarrow"}),
        ("import actors.scorer", set()),
    ],
)
def test_what_needs_no_torch_does_not_load_it(code: str, also: set[str]) -> None:
    assert not loaded(code) & (HEAVY | also)


@pytest.mark.parametrize("role", ["generator", "learner", "sft_worker"])
def test_actors_load_nothing_that_only_other_runs_need(role: str) -> None:
    """PEFT comes with the first adapter; TensorBoard and matplotlib are the driver's."""
    unwanted = {"peft", "datasets", "tensorboard", "matplotlib", "sympy", "math_verify", "fastapi"}
    assert not loaded(f"import actors.{role}") & unwanted
