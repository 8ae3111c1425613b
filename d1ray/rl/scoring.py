"""Scores a rollout table: examples and completions in, rewards and verdicts out."""

import json
import time
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from d1ray.rl import schema
from d1ray.tasks.task import Example, Score, Task
from d1ray.tasks.verdict import judged

Check = Callable[[Sequence[tuple[Example, str]]], list[Score]]


def example_to_json(example: Example) -> str:
    """An example as the JSON that travels in the ``example`` column."""
    values = {name: getattr(example, name) for name in ("key", "prompt", "tags", "prefill")}
    return json.dumps(values | {"fields": dict(example.fields)})


def example_from_json(task: str, text: str) -> Example:
    """The inverse of ``example_to_json``."""
    value: Mapping[str, object] = json.loads(text)
    return Example(task=task, **(dict(value) | {"tags": tuple(value["tags"])}))  # type: ignore[arg-type]


def score_rollouts(table: pa.Table, task: Task, check: Check | None = None, scorer: int = -1) -> pa.Table:
    """Extends a ``schema.GENERATED`` table to ``schema.SCORED``; ``check`` judges, or this process.

    ``scorer`` is recorded.
    """
    started_at, started = time.time(), time.perf_counter()
    examples = [example_from_json(task.name, text) for text in table["example"].to_pylist()]
    pairs = list(zip(examples, table["text"].to_pylist(), strict=True))
    scores = check(pairs) if check else [judged(task, pair) for pair in pairs]
    seconds = time.perf_counter() - started
    columns = _columns(scores) | {
        "scorer": [scorer] * len(scores),
        "started_score": [started_at] * len(scores),
        "seconds_score": [seconds] * len(scores),
    }
    return pa.table(
        {**{name: table[name] for name in schema.GENERATED.names}, **columns}, schema=schema.SCORED
    )


def _columns(scores: list[Score]) -> dict[str, list[object]]:
    return {
        "reward": [s.reward for s in scores],
        "components": [list(s.components.items()) for s in scores],
        "correct": [s.correct for s in scores],
        "partial": [s.partial for s in scores],
        "formatted": [s.formatted for s in scores],
        "parsed": [s.parsed for s in scores],
        "failure": [s.failure for s in scores],
    }
