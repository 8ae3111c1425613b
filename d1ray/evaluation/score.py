"""`d1ray score`: judges completions that exist already, one JSON a line; needs neither model nor Ray."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from d1ray.config.errors import DataError
from d1ray.config.evaluation import ScoringConfig
from d1ray.run.summary import Interval, wilson
from d1ray.tasks.checker import Checker
from d1ray.tasks.rows import load_rows
from d1ray.tasks.task import Example, Score, Task

AT_ONCE = 4096  # completions handed to the checker at a time


@dataclass(frozen=True)
class ScoreSummary:
    """What a file of completions came to. Shares are fractions in [0, 1]; ``ci95`` is Wilson's interval."""

    task: str
    n: int
    correct: int
    accuracy: float
    ci95: Interval
    partial: float
    reward: float
    parse_failures: int
    timeouts: int
    crashes: int
    seconds: float


def score_file(
    task: Task, file: Path, output: Path | None, scoring: ScoringConfig, processes: int | None = None
) -> ScoreSummary:
    """Scores every row of ``file``: ``completion`` and the task's own fields.

    Writes ``{index, parsed, reward, components, correct, partial, formatted, failure}`` a line to ``output``,
    which appears only once it is complete.

    Raises:
        DataError: the file cannot be read, or a row lacks something; names the file and the row.
    """
    pairs = list(_pairs(task, file))
    if not pairs:
        raise DataError(f"{file} holds no rows")
    started = time.monotonic()
    scores: list[Score] = []
    checker = Checker(task, scoring.timeout_s, scoring.memory_gb, processes or os.cpu_count() or 1)
    with closing(checker):
        todo = iter(pairs)
        while part := list(islice(todo, AT_ONCE)):
            scores += checker.check(part)
    if output is not None:
        unfinished = output.with_name(f".{output.name}.writing")
        try:
            unfinished.write_text("".join(_line(i, s) for i, s in enumerate(scores)), encoding="utf-8")
            os.replace(unfinished, output)
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error}") from error
    return _summary(task, scores, time.monotonic() - started)


def report(summary: ScoreSummary) -> str:
    """The summary as lines of text."""
    n = summary.n
    low, high = summary.ci95
    failures = (
        f"{summary.parse_failures:,} of {n:,} without a readable answer ({summary.parse_failures / n:.1%})"
    )
    return "\n".join(
        [
            f"{summary.task}: {summary.correct:,} of {n:,} correct, {summary.accuracy:.1%} "
            f"(95 % interval {low:.1%} to {high:.1%})",
            f"partial accuracy {summary.partial:.1%}, mean reward {summary.reward:.3f}",
            f"{failures}; {summary.timeouts:,} checks timed out, {summary.crashes:,} crashed",
            f"{n / summary.seconds:,.0f} checks a second",
        ]
    )


def _pairs(task: Task, file: Path) -> Iterator[tuple[Example, str]]:
    for place, row in load_rows(file):
        completion = row.get("completion")
        if not isinstance(completion, str):
            raise DataError(f"{place}: completion must be text, found {completion!r:.60}")
        try:
            yield (
                task.example({name: value for name, value in row.items() if name != "completion"}),
                completion,
            )
        except KeyError as error:
            raise DataError(f"{place}: {task.name} needs {error.args[0]!r}; found {', '.join(row)}") from None
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None


def _line(index: int, score: Score) -> str:
    values = {
        "index": index,
        "parsed": score.parsed,
        "reward": score.reward,
        "components": dict(score.components),
        "correct": score.correct,
        "partial": score.partial,
        "formatted": score.formatted,
        "failure": score.failure,
    }
    return json.dumps(values) + "\n"


def _summary(task: Task, scores: list[Score], seconds: float) -> ScoreSummary:
    n, correct = len(scores), sum(s.correct for s in scores)
    return ScoreSummary(
        task=task.name,
        n=n,
        correct=correct,
        accuracy=correct / n,
        ci95=wilson(correct, n),
        partial=sum(s.partial for s in scores) / n,
        reward=sum(s.reward for s in scores) / n,
        parse_failures=sum(s.parsed is None for s in scores),
        timeouts=sum(s.failure == "timeout" for s in scores),
        crashes=sum(s.failure == "crash" for s in scores),
        seconds=seconds,
    )


def as_json(summary: ScoreSummary) -> str:
    """The summary as one JSON object."""
    return json.dumps(asdict(summary))
