"""What a task may import: whoever names one waits for it, and so does every process that checks for it."""

import json
import subprocess
import sys

import pytest

from d1ray.config.kinds import TASKS

MATHEMATICS = {"math_verify", "sympy"}  # for the tasks that compare expressions, and not before they prepare
PREPARED = {"math": MATHEMATICS, "s1k": MATHEMATICS}
GYM = {"numpy", "reasoning_gym", "sympy"}  # a data set of it is made when it is named
NEVER = {"d1ray.config.run", "datasets", "pandas", "pyarrow", "ray", "torch", "transformers"}

PROGRAM = """
import json, pickle, sys
import d1ray.tasks.checker
from d1ray.config.kinds import load_task

heavy, names = map(json.loads, sys.argv[1:])
seen, imported = set(), {}

def note(step):
    imported[step] = sorted(set(heavy) & set(sys.modules) - seen)
    seen.update(imported[step])

note("the checker")
tasks = {}
for name in names:
    tasks[name] = pickle.loads(pickle.dumps(load_task(name)))
    note(f"load {name}")
for name, task in tasks.items():
    task.prepare()
    note(f"prepare {name}")
try:
    load_task("reasoning_gym:chain_sum")
except ValueError as error:
    assert "not installed" in str(error)
note("load reasoning_gym:chain_sum")
print(json.dumps(imported))
"""


@pytest.fixture(scope="module")
def imported():
    """What each step of a fresh process imports, of the modules that are named above."""
    heavy = sorted(NEVER | GYM | MATHEMATICS)
    names = sorted(TASKS, key=lambda name: name in PREPARED)  # so that what these import hides nothing
    arguments = [json.dumps(heavy), json.dumps(names)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {step: set(modules) for step, modules in json.loads(done.stdout).items()}


@pytest.mark.parametrize("step", ["the checker", *(f"load {name}" for name in sorted(TASKS))])
def test_neither_checking_nor_a_task_s_name_imports_anything_heavy(imported, step):
    assert imported[step] == set()


@pytest.mark.parametrize("name", sorted(set(TASKS) - set(PREPARED)))
def test_a_task_that_compares_strings_prepares_without_an_import(imported, name):
    assert imported[f"prepare {name}"] == set()


def test_what_compares_expressions_is_imported_before_the_first_completion(imported):
    assert set.union(*(imported[f"prepare {name}"] for name in PREPARED)) == MATHEMATICS


def test_a_data_set_of_reasoning_gym_imports_itself_only(imported):
    assert imported["load reasoning_gym:chain_sum"] <= GYM
