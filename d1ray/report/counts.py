"""What a run counts as failed, from its rows one after the other: how often, and in which steps first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from d1ray.run.history import is_number

MOST_NAMED = 6  # steps that the report names
SUMMED = ("score_timeouts", "score_crashes", "parse_failures", "nonfinite", "empty_batches", "resampled")
CUMULATIVE = "reissued_calls"  # begins at 0 again when the learner does


@dataclass
class Count:
    """How often something happened, in how many steps, and the first of these."""

    total: int = 0
    steps: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, step: int, times: int) -> None:
        """It happened ``times`` in a step."""
        self.total += times
        if times:
            self.steps += 1
            if len(self.first) < MOST_NAMED:
                self.first.append(step)


class Counts:
    """The counts of a run's RL stage, by the names of its metrics."""

    def __init__(self) -> None:
        self.of = {key: Count() for key in (*SUMMED, CUMULATIVE)}
        self._before = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """The next row."""
        if row.get("stage") != "rl" or not isinstance(row.get("step"), int):
            return
        for key in SUMMED:
            value = row.get(key)
            if isinstance(value, bool) or is_number(value):
                self.of[key].add(row["step"], int(value))
        count = row.get(CUMULATIVE)
        if isinstance(count, int):
            more = count - self._before if count >= self._before else count
            self.of[CUMULATIVE].add(row["step"], more)
            self._before = count
