"""What must not be loaded: settings, the command line and scorers start without torch."""

import subprocess
import sys
from pathlib import Path

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


def test_a_model_is_loaded_without_torch_s_compiler(tmp_path: Path) -> None:
    """It is imported by torch itself where values are drawn for tensors without storage."""
    code = f"""
import sys
from pathlib import Path
from d1ray.config.model import ArchitectureConfig
from d1ray.models.load import check_weights, load_model
from d1ray.models.make import make_model
folder = Path({str(tmp_path)!r})
make_model(ArchitectureConfig(d_model=16, n_layers=1, n_heads=2, max_sequence_length=8), 0, folder)
check_weights(folder)
assert not load_model(folder).training
assert "torch._dynamo" not in sys.modules
"""
    assert "torch" in loaded(code)


def test_the_driver_of_a_run_starts_without_matplotlib() -> None:
    assert not loaded("import d1ray.programs.stages") & {"matplotlib", "tensorboard", "peft", "datasets"}
