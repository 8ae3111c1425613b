"""The tasks a recipe can name. A new task is one file here and one line in ``TASKS``."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from d1ray.tasks.countdown import Countdown
from d1ray.tasks.sudoku import Sudoku
from d1ray.tasks.task import Example, Score, Split, Task

__all__ = ["TASKS", "Countdown", "Example", "Score", "Split", "Sudoku", "Task", "load_task"]

TASKS: dict[str, type[Task]] = {"countdown": Countdown, "sudoku": Sudoku}


def load_task(value: Mapping[str, Any] | str | Task) -> Task:
    """Makes a task from its name or from ``{"name": NAME, option: value, ...}``; returns a ``Task`` as it is.

    Raises ``ValueError`` with one line that begins with the wrong key, e.g. ``task.blanks: ...``.

    Example:
        >>> load_task({"name": "sudoku", "blanks": 6}).name
        'sudoku'
    """
    if isinstance(value, Task):
        return value
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping):
        raise ValueError(f"task: expected a name or a mapping with a name, found {value!r}")
    if "name" not in options:
        raise ValueError(f"task.name: missing; known tasks: {', '.join(sorted(TASKS))}")
    name = options["name"]
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(
            f"task.name: unknown task {name!r}{_did_you_mean(name, TASKS)}; "
            f"known tasks: {', '.join(sorted(TASKS))}"
        )
    try:
        return TASKS[name].model_validate(dict(options))
    except ValidationError as error:
        raise ValueError("; ".join(_line(e, TASKS[name]) for e in error.errors())) from None


def _line(error: Mapping[str, Any], task: type[Task]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        options = ", ".join(sorted(task.model_fields))
        return f"task.{key}: unknown option{_did_you_mean(key, task.model_fields)}; options: {options}"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if error["type"] == "value_error" else f", found {error['input']!r}"
    return f"task.{key}: {message}{found}"


def _did_you_mean(name: object, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
