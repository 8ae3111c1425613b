"""The tasks a recipe can name. A new task is one file here and one line in ``TASKS``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d1ray.registry import load_named
from d1ray.tasks.countdown import Countdown
from d1ray.tasks.custom import task_class
from d1ray.tasks.dialogue import Dialogue
from d1ray.tasks.gsm8k import GSM8K
from d1ray.tasks.gym import PREFIX, ReasoningGym
from d1ray.tasks.math import Math
from d1ray.tasks.s1k import S1K
from d1ray.tasks.sudoku import Sudoku
from d1ray.tasks.sudoku9 import Sudoku9
from d1ray.tasks.task import Example, Score, Split, Task

__all__ = [
    "GSM8K",
    "S1K",
    "TASKS",
    "Countdown",
    "Dialogue",
    "Example",
    "Math",
    "ReasoningGym",
    "Score",
    "Split",
    "Sudoku",
    "Sudoku9",
    "Task",
    "load_task",
]

TASKS: dict[str, type[Task]] = {
    "countdown": Countdown,
    "dialogue": Dialogue,
    "gsm8k": GSM8K,
    "math": Math,
    "s1k": S1K,
    "sudoku": Sudoku,
    "sudoku9": Sudoku9,
}


def load_task(value: Mapping[str, Any] | str | Task) -> Task:
    """Makes a task from its name or from ``{"name": NAME, option: value, ...}``; returns a ``Task`` as it is.

    A name that ends in ``.py`` is a file that defines a task (``d1ray.tasks.custom``), one that begins with
    ``reasoning_gym:`` a data set of reasoning-gym (``d1ray.tasks.gym``).

    Raises ``ValueError`` with one line that begins with the wrong key, e.g. ``task.blanks: ...``.

    Example:
        >>> load_task({"name": "sudoku", "blanks": 6}).name
        'sudoku'
    """
    options = value if isinstance(value, Mapping) else {"name": value}
    name = options.get("name")
    if isinstance(name, str) and name.endswith(".py"):
        path = Path(name).absolute()
        return load_named("task", {str(path): task_class(path)}, {**options, "name": str(path)})
    if isinstance(name, str) and name.startswith(PREFIX):
        return load_named("task", {name: ReasoningGym}, options)
    return load_named("task", TASKS, value)
