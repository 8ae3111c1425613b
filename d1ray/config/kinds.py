"""The tasks and algorithms that a recipe can name. A new one is one file and one line here."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from d1ray.config.registry import Kinds
from d1ray.config.settings import Named

if TYPE_CHECKING:
    from d1ray.rl.algorithm import Algorithm
    from d1ray.tasks.task import Task
else:  # what a name stands for is imported when it is named
    Algorithm = Task = Named

TASKS: Kinds[Task] = Kinds(
    "task",
    {
        "countdown": "d1ray.tasks.countdown:Countdown",
        "dialogue": "d1ray.tasks.dialogue:Dialogue",
        "gsm8k": "d1ray.tasks.gsm8k:GSM8K",
        "math": "d1ray.tasks.math:Math",
        "s1k": "d1ray.tasks.s1k:S1K",
        "sudoku": "d1ray.tasks.sudoku:Sudoku",
        "sudoku9": "d1ray.tasks.sudoku9:Sudoku9",
    },
    families={
        "*.py": "d1ray.tasks.custom:task_class",
        "reasoning_gym:*": "d1ray.tasks.gym:gym_class",
    },
)

ALGORITHMS: Kinds[Algorithm] = Kinds(
    "algorithm",
    {
        "bgpo": "d1ray.rl.algorithms.bgpo:BGPO",
        "coupled_grpo": "d1ray.rl.algorithms.coupled_grpo:CoupledGRPO",
        "diffu_grpo": "d1ray.rl.algorithms.diffu_grpo:DiffuGRPO",
        "espo": "d1ray.rl.algorithms.espo:ESPO",
        "gdpo": "d1ray.rl.algorithms.gdpo:GDPO",
        "spg": "d1ray.rl.algorithms.spg:SPG",
        "tracerl": "d1ray.rl.algorithms.tracerl:TraceRL",
        "unigrpo": "d1ray.rl.algorithms.unigrpo:UniGRPO",
        "wd1": "d1ray.rl.algorithms.wd1:WD1",
    },
    default="diffu_grpo",
)


def load_task(value: Any) -> Task:
    """Makes a task from its name or from ``{"name": NAME, option: value, ...}``; returns a ``Task`` as it is.

    A name that ends in ``.py`` is a file that defines a task (``d1ray.tasks.custom``), one that begins with
    ``reasoning_gym:`` a data set of reasoning-gym (``d1ray.tasks.gym``).

    Raises ``ValueError`` with one line that begins with the wrong key, e.g. ``task.blanks: ...``.

    Example:
        >>> load_task({"name": "sudoku", "blanks": 6}).name
        'sudoku'
    """
    return TASKS.load(value)


def load_algorithm(value: Any) -> Algorithm:
    """Makes an algorithm from its name or from ``{"name": NAME, option: value, ...}``.

    Raises ``ValueError`` with one line that begins with the wrong key, e.g. ``algorithm.beta: ...``.

    Example:
        >>> load_algorithm({"name": "diffu_grpo", "beta": 0}).needs_reference
        False
    """
    return ALGORITHMS.load(value)


def _load_optional_task(value: Any) -> Task | None:
    return None if value is None else load_task(value)


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(load_task)]
OptionalTask = Annotated[SerializeAsAny[Task] | None, BeforeValidator(_load_optional_task)]
AnyAlgorithm = Annotated[SerializeAsAny[Algorithm], BeforeValidator(load_algorithm)]
