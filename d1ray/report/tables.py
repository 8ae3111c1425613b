"""The tables of the report: final accuracies, what failed, where the time went, and how settings differ."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d1ray.config.kinds import load_algorithm
from d1ray.report.runs import Run
from d1ray.report.statistics import StepStatistics
from d1ray.run.summary import Interval, StageResult, stage_labels

PHASES = ("load", "generate", "logprob", "score", "learn", "publish")
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
    """Something that went wrong: how often in a run, and in which steps."""

    name: str
    about: str
    total: int
    steps: Sequence[int]


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
    rows = run.rl_rows
    dropped = [int(row["step"]) for row in run.dropped if isinstance(row.get("step"), int)]
    learners = [one.incarnation for one in statistics]
    starts = sorted({i for i in learners if i != min(learners)}) if learners else []
    first_steps = [min(one.step for one in statistics if one.incarnation == i) for i in starts]
    return [
        _cumulative(rows, "reissued_calls", "Calls made again", "their actor died or hung"),
        Failure(
            "Learner started again",
            "rebuilt after a death, or the run was continued",
            len(starts),
            first_steps,
        ),
        _summed(rows, "score_timeouts", "Checks timed out", "of completions; they earn nothing"),
        _summed(rows, "score_crashes", "Checks crashed", "of completions; they earn nothing"),
        _summed(rows, "parse_failures", "Answers not read", "of completions"),
        Failure("Groups dropped", "their calls failed by themselves", len(dropped), sorted(set(dropped))),
        _summed(rows, "nonfinite", "Updates not finite", "loss or gradient; not applied"),
        _summed(rows, "empty_batches", "Steps without update", "in every group all rewards were equal"),
        _summed(rows, "resampled", "Groups decoded again", "fast decoding was too far from exact"),
    ]


def phase_seconds(run: Run) -> dict[str, Any] | None:
    """Seconds of each phase in each RL step, as columns, and of validation; None where none were recorded."""
    rows = [row for row in run.rl_rows if any(f"seconds_{phase}" in row for phase in PHASES)]
    if not rows:
        return None
    return {
        "steps": [row["step"] for row in rows],
        "wall": [_seconds(row, "step") for row in rows],
        "phases": {phase: [_seconds(row, phase) for row in rows] for phase in PHASES},
        "validate": round(sum(_seconds(row, "validate") for row in run.rl_rows), 3),
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


def _summed(rows: Sequence[Mapping[str, Any]], key: str, name: str, about: str) -> Failure:
    counted = [(row["step"], int(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return Failure(name, about, sum(n for _, n in counted), [step for step, n in counted if n])


def _cumulative(rows: Sequence[Mapping[str, Any]], key: str, name: str, about: str) -> Failure:
    """Of a counter that begins at 0 again when the learner does."""
    steps, total, before = [], 0, 0
    for row in rows:
        count = row.get(key)
        if isinstance(count, int):
            more = count - before if count >= before else count
            total, before = total + more, count
            steps += [row["step"]] if more else []
    return Failure(name, about, total, steps)


def _seconds(row: Mapping[str, Any], phase: str) -> float:
    value = row.get(f"seconds_{phase}")
    return round(float(value), 3) if isinstance(value, int | float) and math.isfinite(value) else 0.0
