"""The verdict on one completion, whatever the task's ``judge`` does, and how it travels between processes."""

import json
import math
from dataclasses import asdict
from functools import lru_cache

from pydantic import TypeAdapter

from d1ray.tasks.task import Example, Failure, Score, Task

MAX_PARSED = 500  # characters of a parsed answer that are kept

Pair = tuple[Example, str]


def failed(task: Task, failure: Failure) -> Score:
    """The score of a completion whose check did not end."""
    return Score(dict.fromkeys(task.rewards, 0.0), False, 0.0, False, None, failure)


def judged(task: Task, pair: Pair) -> Score:
    """The score of one completion, made safe to store; an error in the task's ``judge`` counts as a crash."""
    try:
        return judged_in_memory(task, pair)
    except MemoryError:
        return failed(task, "crash")


def judged_in_memory(task: Task, pair: Pair) -> Score:
    """The same, but raises ``MemoryError``, of which other completions may be the reason."""
    try:
        return _storable(task.score(*pair))
    except MemoryError:
        raise
    except Exception:  # whatever a task's author or a library did not foresee
        return failed(task, "crash")


def to_line(score: Score) -> bytes:
    """``score`` as a line of JSON."""
    return json.dumps(asdict(score)).encode() + b"\n"


def from_line(line: bytes) -> Score:
    """The inverse of ``to_line``. The line may say anything: ``ValueError`` where it is no score."""
    return _storable(_scores().validate_json(line, strict=True))


def _storable(score: Score) -> Score:
    """``score`` in plain numbers, all finite, and a text that is short and can be encoded."""
    components = {name: float(value) for name, value in score.components.items()}
    partial = float(score.partial)
    if not all(map(math.isfinite, (*components.values(), partial))):
        raise ValueError("a score is not finite")
    parsed = score.parsed
    if parsed is not None:
        parsed = parsed[:MAX_PARSED].encode("utf-8", "replace").decode()
    correct, formatted = bool(score.correct), bool(score.formatted)
    return Score(components, correct, partial, formatted, parsed, score.failure)


@lru_cache(maxsize=1)
def _scores() -> TypeAdapter[Score]:
    return TypeAdapter(Score)
