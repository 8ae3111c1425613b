"""A run's metrics in bounded memory, however long it was: read once, row by row.

A series has at most so many bins. Where there would be more, two neighbours become one: a bin of several
steps knows their mean, the lowest and the highest, so that nothing that stood out is lost.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

MOST_BINS = 1000  # of a series
MOST_BARS = 240  # of the phases, which are drawn as bars
PHASES = ("load", "generate", "logprob", "score", "learn", "publish")
WALL = "step"


@dataclass
class Bin:
    """The values of neighbouring steps."""

    first: int
    last: int
    low: float
    high: float
    total: float
    count: int = 1

    @property
    def mean(self) -> float:
        return self.total / self.count

    def take_in(self, other: "Bin") -> None:
        """Makes this one the bin of both."""
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total, self.count = self.total + other.total, self.count + other.count


class Series:
    """Values over steps in at most ``most`` bins, each of ``width`` steps (a power of two).

    Attributes:
        total: of all values.
        best: step and value of the highest, the earliest if several are equally high; None without values.

    Example:
        >>> series = Series(most=2)
        >>> for step in range(4):
        ...     series.add(step, float(step))
        >>> [(bin.first, bin.last, bin.mean, bin.low, bin.high) for bin in series.bins]
        [(0, 1, 0.5, 0.0, 1.0), (2, 3, 2.5, 2.0, 3.0)]
    """

    def __init__(self, most: int = MOST_BINS):
        self.most, self.width, self.total = most, 1, 0.0
        self.best: tuple[int, float] | None = None
        self._bins: dict[int, Bin] = {}

    def add(self, step: int, value: float) -> None:
        """A finite value at a step."""
        self.total += value
        if self.best is None or (value, -step) > (self.best[1], -self.best[0]):
            self.best = step, value
        self._into(self._bins, Bin(step, step, value, value, value))
        while len(self._bins) > self.most:
            self.width *= 2
            merged: dict[int, Bin] = {}
            for one in self._bins.values():
                self._into(merged, one)
            self._bins = merged

    def at(self, step: int) -> float | None:
        """The value at a step, or the mean around it; None if there is none."""
        found = self._bins.get(step // self.width)
        return found.mean if found else None

    @property
    def bins(self) -> list[Bin]:
        """By step."""
        return [self._bins[key] for key in sorted(self._bins)]

    def __bool__(self) -> bool:
        return bool(self._bins)

    def _into(self, bins: dict[int, Bin], one: Bin) -> None:
        found = bins.setdefault(one.first // self.width, one)
        if found is not one:
            found.take_in(one)


class History:
    """Every number of a run's rows, by stage and name, over the stage's steps.

    Attributes:
        series: (stage, name) -> its values. Missing, null and non-finite ones are left out.
        phases: seconds of RL's ``PHASES``, and of the ``WALL``, in the steps that have any; one that was not
            measured took none.
        last: each stage's last step.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self.series: dict[tuple[str, str], Series] = {}
        self.phases = {phase: Series(MOST_BARS) for phase in (*PHASES, WALL)}
        self.last: dict[str, int] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """The next row."""
        stage, step = str(row.get("stage")), row.get("step")
        if row.get("stage") is None or not isinstance(step, int):
            return
        self.last[stage] = max(step, self.last.get(stage, step))
        for key, value in row.items():
            if key not in ("stage", "step") and not key.startswith("started_") and is_number(value):
                series = self.series.get((stage, key))
                if series is None:
                    series = self.series[stage, key] = Series()
                series.add(step, float(value))
        if stage == "rl" and any(f"seconds_{phase}" in row for phase in PHASES):
            for phase, series in self.phases.items():
                value = row.get(f"seconds_{phase}")
                series.add(step, float(value) if is_number(value) else 0.0)

    def of(self, stage: str, key: str) -> Series:
        """A series; an empty one if there are no such numbers."""
        return self.series.get((stage, key)) or Series()


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
