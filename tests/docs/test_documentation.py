"""The documentation builds without a broken link, and its commands are ones that the program understands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from d1ray.cli import app
from d1ray.config.recipe import load_config

REPOSITORY = Path(__file__).parents[2]
# The examples of docs/adding-*.md are run by test_custom_task.py and test_algorithm_contract.py.
DOCS = [page for page in sorted((REPOSITORY / "docs").glob("*.md")) if not page.name.startswith("adding-")]
PAGES = [REPOSITORY / "README.md", *DOCS]


def commands(page):
    """Lines of code blocks that call d1ray, without comment and prompt."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").split("  #")[0].strip()
            if line.startswith("d1ray "):
                yield line


def test_the_site_builds_without_a_broken_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=f"{page.name}: {line}") for page in PAGES for line in commands(page)]
)
def test_a_documented_command_is_one_that_d1ray_understands(line):
    name, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[name]
    context = command.make_context(name, arguments)  # unknown options and missing ones raise
    recipe, overrides = context.params.get("recipe"), context.params.get("overrides") or []
    if recipe is not None:
        load_config(recipe, [o for o in overrides if o.split("=")[0] != "model.path"])


def test_there_are_commands_to_test():
    assert sum(len(list(commands(page))) for page in PAGES) > 30
