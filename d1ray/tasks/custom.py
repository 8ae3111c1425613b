"""A task from a user's own Python file: ``task.name=my_task.py``.

The file defines one subclass of ``Task``. Its tasks are pickled with their source, so that they reach Ray's
workers and the checking processes, which need not see the file.
"""

import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from d1ray.tasks.task import Task


def task_class(name: str) -> type[Task]:
    """The task that the file ``name`` defines.

    Raises ``ValueError`` (``task.name: ...``): no such file, an error in it, or not exactly one task.
    """
    path = Path(name)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"task.name: {path} cannot be read: {error}") from None
    return _class_of(source, str(path))


def rebuilt(source: str, path: str, values: dict[str, Any]) -> Task:
    """What a pickled task becomes where it arrives."""
    return _class_of(source, path).model_validate(values)


@lru_cache(maxsize=16)
def _class_of(source: str, path: str) -> type[Task]:
    module = ModuleType(f"d1ray_task_{abs(hash((source, path))):x}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where pydantic looks up what annotations name
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise ValueError(f"task.name: {path}, line {line}: {type(error).__name__}: {error}") from None
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ValueError(f"task.name: {path} must define one subclass of Task, found {names}")

    def reduce(task: Task) -> tuple[Any, ...]:
        return rebuilt, (source, path, task.model_dump())

    found[0].__reduce__ = reduce  # type: ignore[method-assign,assignment]
    return found[0]
