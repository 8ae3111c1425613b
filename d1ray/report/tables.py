"""The tables of the report: final accuracies, what failed, where the time went, and how settings differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d1ray.config.kinds import load_algorithm
from d1ray.report.runs import Run
from d1ray.report.statistics import StepStatistics
from d1ray.run.history import PHASES, WALL
from d1ray.run.summary import Interval, StageResult, stage_labels

NOT_COMPARED = ("run_dir", "about")


@dataclass(frozen=True)
class Result:
    """A row of the final table: one stage of one run, or one tag of it. Fractions in [0, 1], None unknown."""

    run: int
    label: str
    task: str
    n: int
    solved: float | None
    ci95: Interval
    cell: float | None = None
    format: float | None = None
    of_stage: bool = True


@dataclass(frozen=True)
class Failure:
    """Something that went wrong: how often in a run, in how many steps, and in which first."""

    name: str
    about: str
    total: int
    steps: Sequence[int]
    in_steps: int


def algorithm_title(run: Run) -> str:
    """What the run's algorithm is called; "" without RL."""
    settings = run.setting("rl.algorithm")
    if settings is None:
        return ""
    try:
        return load_algorithm(settings).title
    except ValueError:
        return str(settings.get("name", "RL") if isinstance(settings, Mapping) else settings)


def results(runs: Sequence[Run]) -> list[Result]:
    """The rows of every run's ``summary.json``."""
    found = []
    for index, run in enumerate(runs):
        stages = [row for row in run.summary.get("rows", []) if isinstance(row, dict) and "stage" in row]
        algorithm = algorithm_title(run) or "RL"
        labels = stage_labels(
            StageResult(row["stage"], "", 0, 0, 0, 0, (0, 1), algorithm=algorithm) for row in stages
        )
        for row in stages:
            stage = Result(
                run=index,
                label=labels[row["stage"]],
                task=str(row.get("task", "")),
                n=row.get("n", 0),
                solved=row.get("solved"),
                ci95=tuple(row.get("ci95", (0.0, 1.0))),
                cell=row.get("cell"),
                format=row.get("format"),
            )
            found.append(stage)
            for tag, tagged in row.get("tags", {}).items():
                accuracy = {"n": tagged["n"], "solved": tagged["solved"], "ci95": tuple(tagged["ci95"])}
                found.append(replace(stage, label=tag, **accuracy, cell=None, format=None, of_stage=False))
    return found


def failures(run: Run, statistics: Sequence[StepStatistics]) -> list[Failure]:
    """Everything that a run counts as failed, also what never happened."""
    dropped = [int(row["step"]) for row in run.dropped if isinstance(row.get("step"), int)]
    in_steps = sorted(set(dropped))
    learners = [one.incarnation for one in statistics]
    starts = sorted({i for i in learners if i != min(learners)}) if learners else []
    first_steps = [min(one.step for one in statistics if one.incarnation == i) for i in starts]
    return [
        _counted(run, "reissued_calls", "Calls made again", "their actor died or hung"),
        Failure(
            "Learner started again",
            "rebuilt after a death, or the run was continued",
            len(starts),
            first_steps,
            len(starts),
        ),
        _counted(run, "score_timeouts", "Checks timed out", "of completions; they earn nothing"),
        _counted(run, "score_crashes", "Checks crashed", "of completions; they earn nothing"),
        _counted(run, "parse_failures", "Answers not read", "of completions"),
        Failure("Groups dropped", "their calls failed by themselves", len(dropped), in_steps, len(in_steps)),
        _counted(run, "nonfinite", "Updates not finite", "loss or gradient; not applied"),
        _counted(run, "empty_batches", "Steps without update", "in every group all rewards were equal"),
        _counted(run, "resampled", "Groups decoded again", "fast decoding was too far from exact"),
    ]


def phase_seconds(run: Run) -> dict[str, Any] | None:
    """Mean seconds of each phase in RL's steps, as columns, and their sums; None where none were recorded.

    A place of a column is a step, or of a long run several: from the one in ``steps`` to that in ``last``.
    """
    phases = run.history.phases
    bins = phases[PHASES[0]].bins
    if not bins:
        return None
    means = {phase: [round(one.mean, 3) for one in series.bins] for phase, series in phases.items()}
    return {
        "steps": [one.first for one in bins],
        "last": [one.last for one in bins],
        "wall": means[WALL],
        "phases": {phase: means[phase] for phase in PHASES},
        "sums": {phase: round(series.total, 3) for phase, series in phases.items()},
        "validate": round(run.history.of("rl", "seconds_validate").total, 3),
    }


def flat_settings(value: Any, key: str = "") -> dict[str, str]:
    """Settings by dotted key, as text; parts of a list are numbered from 0."""
    parts = value
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = {str(number): part for number, part in enumerate(value)}
    if not isinstance(parts, Mapping) or not parts:
        return {key: value if isinstance(value, str) else json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for name, part in parts.items():
        flat |= flat_settings(part, f"{key}.{name}" if key else str(name))
    return flat


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which the runs differ, with each run's value; "-" where a run has no such setting."""
    settings = [flat_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if key not in NOT_COMPARED)
    values = {key: [one.get(key, "-") for one in settings] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _counted(run: Run, key: str, name: str, about: str) -> Failure:
    count = run.counts.of[key]
    return Failure(name, about, count.total, count.first, count.steps)
