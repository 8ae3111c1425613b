"""What the stored completions say about each step: means of groups, and signs of self-correction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from d1ray.evaluation.samples import interval
from d1ray.report.runs import Run, over_steps, read_table, step_of
from d1ray.report.signs import SIGNS, count_signs
from d1ray.run.summary import Interval, wilson

MOST_STEPS = 200  # whose completions are read: the report of a long run is ready within seconds
SHARES = {
    "solved": "correct",
    "cell": "partial",
    "format": "formatted",
}  # metrics in [0, 1] and their columns
ANY_SIGN = "any sign"
COLUMNS = ("group_id", "incarnation", "text", "reward", "components", *SHARES.values())


@dataclass(frozen=True)
class StepStatistics:
    """One step's completions.

    Attributes:
        step: as in ``metrics.jsonl``.
        completions: how many.
        incarnation: the newest of the learners that sampled them.
        shares: for each of ``SHARES``, each sign and ``ANY_SIGN``, each group's mean, in [0, 1].
        rewards: the same for "reward" and "reward/COMPONENT", on any scale.
        signs: completions with each sign, and how many of them are solved.
    """

    step: int
    completions: int
    incarnation: int
    shares: Mapping[str, Sequence[float]]
    rewards: Mapping[str, Sequence[float]]
    signs: Mapping[str, tuple[int, int]]


def step_statistics(run: Run) -> Iterator[StepStatistics]:
    """The statistics of the steps whose completions can be read, of ``MOST_STEPS`` at most, evenly chosen."""
    for file in over_steps(run.rollouts, MOST_STEPS):
        table = read_table(run, file, COLUMNS)
        if table is not None and table.num_rows and not _lacks(table):
            yield _statistics(step_of(file), table)


def share_band(means: Sequence[float], completions: int) -> Interval:
    """95 % interval of a share in [0, 1], from the means of groups.

    Wilson's for so many independent completions as would vary as much as the groups do: all of them where
    completions of a group are no more alike than others, the number of groups where they are all the same. A
    share of 0 or 1 says nothing about that: there it is all completions.
    """
    if set(means) in ({0.0}, {1.0}):
        return wilson(means[0] * completions, completions)
    return interval(means, max(1, round(completions / len(means))))


def mean_band(means: Sequence[float]) -> Interval | None:
    """95 % interval of a mean from the means of n groups: ± 1.96 s / sqrt(n); None for a single group."""
    if len(means) < 2:
        return None
    half = 1.96 * float(np.std(means, ddof=1)) / len(means) ** 0.5
    return float(np.mean(means)) - half, float(np.mean(means)) + half


def groups_of(table: pa.Table) -> list[slice]:
    """The rows of each group, which are adjacent."""
    ids = table["group_id"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(ids)) + 1), len(ids)]
    return [slice(int(a), int(b)) for a, b in pairwise(starts)]


def _statistics(step: int, table: pa.Table) -> StepStatistics:
    groups = groups_of(table)
    solved = table["correct"].to_numpy().astype(bool)
    found = [count_signs(text) for text in table["text"].to_pylist()]
    has = {sign.name: np.array([sign.name in counts for counts in found]) for sign in SIGNS}
    has[ANY_SIGN] = np.array([bool(counts) for counts in found])
    components = [dict(row) for row in table["components"].to_pylist()]
    rewards = {f"reward/{name}": np.array([row[name] for row in components]) for name in components[0]}
    shares = {metric: table[column].to_numpy() for metric, column in SHARES.items()} | has
    return StepStatistics(
        step=step,
        completions=table.num_rows,
        incarnation=max(table["incarnation"].to_pylist()),
        shares=_group_means(shares, groups),
        rewards=_group_means({"reward": table["reward"].to_numpy()} | rewards, groups),
        signs={name: (int(rows.sum()), int((rows & solved).sum())) for name, rows in has.items()},
    )


def _group_means(values: Mapping[str, np.ndarray], groups: Sequence[slice]) -> dict[str, list[float]]:
    return {name: [float(np.mean(rows[group])) for group in groups] for name, rows in values.items()}


def _lacks(table: pa.Table) -> bool:
    """Whether a column is wholly missing."""
    return any(pa.types.is_null(field.type) for field in table.schema)
