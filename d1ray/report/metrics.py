"""The curves of the report: which metrics there are, what they mean, and their bands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from d1ray.report.runs import Run, evenly
from d1ray.report.statistics import SHARES, StepStatistics, mean_band, share_band
from d1ray.summary import Interval, wilson

MOST_POINTS = 1000  # of one curve
Unit = Literal["share", "seconds", ""]
Point: TypeAlias = tuple[int, float, float | None, float | None]  # step, value, lower and upper bound

OF_VALIDATION = "95 %, Wilson, of the validation examples"
OF_SHARES = "95 %, Wilson, of the step's completions; those of a prompt count for less if they are alike"
OF_MEANS = "95 %, mean ± 1.96 standard errors over the step's prompts"


@dataclass(frozen=True)
class Metric:
    """A metric of the RL stage: its key in ``metrics.jsonl``, and what a reader needs to know about it."""

    key: str
    title: str
    section: str
    about: str
    unit: Unit = ""
    shown: bool = False  # before anybody chooses


METRICS = (
    Metric("validation_solved", "Validation solved", "Results", "held-out examples", "share", shown=True),
    Metric(
        "solved", "Solved in training", "Results", "completions that are strictly right", "share", shown=True
    ),
    Metric("reward", "Reward", "Results", "mean of the completions", shown=True),
    Metric("cell", "Partly right", "Results", "the task's graded accuracy; Sudoku: cells", "share"),
    Metric("format", "Well formatted", "Results", "an answer where one was asked for", "share"),
    Metric("loss", "Loss", "Policy", "mean of the step's inner updates"),
    Metric("kl", "KL", "Policy", "to the reference, nats a token", shown=True),
    Metric("clip_fraction", "Clip fraction", "Policy", "where the ratio is clipped", "share", shown=True),
    Metric("grad_norm", "Gradient norm", "Policy", "before clipping", shown=True),
    Metric("learning_rate", "Learning rate", "Policy", "mean of the step's inner updates"),
    Metric("groups_with_advantage", "Groups that teach", "Policy", "their rewards differ", "share"),
    Metric(
        "logprob_gap",
        "Log-prob gap",
        "Off-policy",
        "learner to generator, before updates, nats",
        shown=True,
    ),
    Metric("policy_age", "Policy age", "Off-policy", "versions between sampling and learning", shown=True),
    Metric("mismatch", "Fast decoding's gap", "Off-policy", "to exact decoding, nats a token"),
    Metric("forwards_per_token", "Forwards per token", "Speed", "denoising steps over tokens", shown=True),
    Metric("tokens_per_s", "Tokens per second", "Speed", "of the whole step, wall time", shown=True),
    Metric("seconds_step", "Step", "Speed", "wall time, without validation", "seconds"),
    Metric("parse_failures", "Answers not read", "Failures", "completions of a step"),
    Metric("score_timeouts", "Checks timed out", "Failures", "completions of a step"),
    Metric("score_crashes", "Checks crashed", "Failures", "completions of a step"),
    Metric("dropped_groups", "Dropped groups", "Failures", "in a step"),
    Metric("nonfinite", "Updates not finite", "Failures", "in a step, not applied"),
    Metric("empty_batches", "Steps without update", "Failures", "in every group all rewards were equal"),
    Metric("resampled", "Groups decoded again", "Failures", "fast decoding was too far from exact"),
)
KNOWN = {metric.key for metric in METRICS}
NOT_CURVES = {
    "stage",
    "step",
    "validation_examples",
    "tokens",
    "updates",
    "reissued_calls",
    "reference_version",
}


def curves(runs: Sequence[Run], statistics: Sequence[Sequence[StepStatistics]]) -> list[dict[str, Any]]:
    """Every metric that some run recorded, with a curve or null for each run, as the page reads it."""
    drawn = [
        _curve(
            metric, [_points(run, metric, found) for run, found in zip(runs, statistics, strict=True)], runs
        )
        for metric in _metrics_of(runs)
    ]
    drawn += [
        {
            "key": f"{stage}/{key}",
            "title": title.format(stage=_stage_title(stage)),
            "section": "Supervised",
            "about": "masked diffusion loss",
            "unit": "",
            "shown": False,
            "band": "",
            "runs": [_columns(_thin(_stage_points(run, stage, key))) for run in runs],
        }
        for stage in dict.fromkeys(
            str(row["stage"]) for run in runs for row in run.rows if row.get("stage") != "rl"
        )
        for key, title in (("loss", "{stage}: loss"), ("validation_loss", "{stage}: validation loss"))
    ]
    drawn = [curve for curve in drawn if any(curve["runs"])]
    if drawn and not any(curve["shown"] for curve in drawn):
        drawn[0]["shown"] = True
    return drawn


def _metrics_of(runs: Sequence[Run]) -> list[Metric]:
    """The known metrics, reward components after the reward, then whatever else an algorithm reports."""
    keys = dict.fromkeys(key for run in runs for row in run.rl_rows for key in row)
    components = [
        Metric(key, f"Reward: {key.removeprefix('reward/')}", "Reward components", "mean of the completions")
        for key in keys
        if key.startswith("reward/")
    ]
    others = [
        Metric(key, key, "Others", "as the algorithm reports it")
        for key in keys
        if key not in KNOWN | NOT_CURVES and not key.startswith(("reward/", "seconds_", "started_"))
    ]
    return [*METRICS[:5], *components, *METRICS[5:], *others]


def _curve(metric: Metric, of_runs: Sequence[Sequence[Point]], runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "key": metric.key,
        "title": metric.title,
        "section": metric.section,
        "about": metric.about,
        "unit": metric.unit,
        "shown": metric.shown,
        "band": _about_band(metric.key)
        if any(low is not None for points in of_runs for _, _, low, _ in points)
        else "",
        "runs": [_columns(_thin(points)) for points in of_runs],
    }


def _points(run: Run, metric: Metric, statistics: Sequence[StepStatistics]) -> list[Point]:
    found = {one.step: one for one in statistics}
    stored = bool(found)
    points = []
    for row in run.rl_rows:
        value, step = _number(row.get(metric.key)), row.get("step")
        if value is not None and isinstance(step, int):
            known = step in found or not stored or metric.key == "validation_solved"
            band = band_of(run, row, metric.key, value, found.get(step)) if known else None
            low, high = band or (None, None)
            points.append((step, value, low, high))
    return points


def band_of(
    run: Run, row: Mapping[str, Any], key: str, value: float, found: StepStatistics | None
) -> Interval | None:
    """The 95 % interval of one value of a metric, or None where the metric is no mean over completions.

    From the stored completions where there are any, by group; else of a share Wilson's interval for the
    number of completions that the configuration says.
    """
    share = min(1.0, max(0.0, value))
    if key == "validation_solved":
        examples = row.get("validation_examples") or run.setting("evaluation.validation_examples", 0)
        return wilson(share * examples, examples)
    if found is not None and key in SHARES:
        return share_band(found.shares[key], found.completions)
    if found is not None and key in found.rewards:
        return mean_band(found.rewards[key])
    if key in SHARES:
        groups = run.setting("rl.prompts_per_step", 0) - (row.get("dropped_groups") or 0)
        completions = groups * run.setting("rl.group_size", 0)
        return wilson(share * completions, completions)
    return None


def _about_band(key: str) -> str:
    return OF_VALIDATION if key == "validation_solved" else OF_SHARES if key in SHARES else OF_MEANS


def _stage_points(run: Run, stage: str, key: str) -> list[Point]:
    return [
        (row["step"], value, None, None)
        for row in run.rows
        if row.get("stage") == stage
        and (value := _number(row.get(key))) is not None
        and isinstance(row.get("step"), int)
    ]


def _thin(points: Sequence[Point]) -> list[Point]:
    return evenly(points, MOST_POINTS)


def _columns(points: Sequence[Point]) -> dict[str, list[Any]] | None:
    """Columns of numbers with as many digits as a picture shows; no bounds where there is no band."""
    if not points:
        return None
    steps, values, lows, highs = (list(column) for column in zip(*points, strict=True))
    columns = {"steps": steps, "values": [_short(v) for v in values]}
    if any(low is not None for low in lows):
        columns |= {"low": [_short(v) for v in lows], "high": [_short(v) for v in highs]}
    return columns


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _stage_title(stage: str) -> str:
    return {"sft": "SFT"}.get(stage, stage.capitalize())
