"""The curves of the report: which metrics are shown how, and their bands."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from d1ray.report.runs import Run
from d1ray.report.statistics import SHARES, StepStatistics, mean_band, share_band
from d1ray.run.history import Series
from d1ray.run.metrics import FAMILY, METRICS
from d1ray.run.summary import Interval, wilson

Point: TypeAlias = tuple[int, float, float | None, float | None]  # step, value, lower and upper bound
Curve: TypeAlias = tuple[int, list[Point]]  # steps of a point, and the points

OF_VALIDATION = "95 %, Wilson, of the validation examples"
OF_SHARES = "95 %, Wilson, of the step's completions; those of a prompt count for less if they are alike"
OF_BINS = "of a long run, whose points are means of several steps: the lowest to the highest of them"
OF_MEANS = "95 %, mean ± 1.96 standard errors over the step's prompts"


@dataclass(frozen=True)
class Chart:
    """How a metric of the RL stage is shown; ``d1ray.run.metrics`` says what it means."""

    key: str
    title: str
    section: str
    shown: bool = False  # before anybody chooses


CHARTS = (
    Chart("validation_solved", "Validation solved", "Results", shown=True),
    Chart("solved", "Solved in training", "Results", shown=True),
    Chart("reward", "Reward", "Results", shown=True),
    Chart("cell", "Partly right", "Results"),
    Chart("format", "Well formatted", "Results"),
    Chart("loss", "Loss", "Policy"),
    Chart("kl", "KL", "Policy", shown=True),
    Chart("clip_fraction", "Clip fraction", "Policy", shown=True),
    Chart("grad_norm", "Gradient norm", "Policy", shown=True),
    Chart("learning_rate", "Learning rate", "Policy"),
    Chart("groups_with_advantage", "Groups that teach", "Policy"),
    Chart("logprob_gap", "Log-prob gap", "Off-policy", shown=True),
    Chart("policy_age", "Policy age", "Off-policy", shown=True),
    Chart("mismatch", "Fast decoding's gap", "Off-policy"),
    Chart("forwards_per_token", "Forwards per token", "Speed", shown=True),
    Chart("tokens_per_s", "Tokens per second", "Speed", shown=True),
    Chart("seconds_step", "Step", "Speed"),
    Chart("parse_failures", "Answers not read", "Failures"),
    Chart("score_timeouts", "Checks timed out", "Failures"),
    Chart("score_crashes", "Checks crashed", "Failures"),
    Chart("dropped_groups", "Dropped groups", "Failures"),
    Chart("nonfinite", "Updates not finite", "Failures"),
    Chart("empty_batches", "Steps without update", "Failures"),
    Chart("resampled", "Groups decoded again", "Failures"),
)
RESULTS = 5  # charts before which reward components come
KNOWN = {chart.key for chart in CHARTS}
MEANINGS = {metric.name: metric for metric in METRICS}
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
        _curve(chart, [_points(run, chart.key, of) for run, of in zip(runs, statistics, strict=True)])
        for chart in _charts_of(runs)
    ]
    stages = dict.fromkeys(stage for run in runs for stage in run.history.last if stage != "rl")
    for stage in stages:
        title = {"sft": "SFT"}.get(stage, stage.capitalize())
        for key, name in (("loss", "loss"), ("validation_loss", "validation loss")):
            chart = Chart(f"{stage}/{key}", f"{title}: {name}", "Supervised")
            drawn.append(_curve(chart, [_plain(run.history.of(stage, key)) for run in runs]))
    drawn = [curve for curve in drawn if any(curve["runs"])]
    if drawn and not any(curve["shown"] for curve in drawn):
        drawn[0]["shown"] = True
    return drawn


def _charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The known ones, reward components after the reward, then whatever else an algorithm reports."""
    keys = dict.fromkeys(key for run in runs for stage, key in run.history.series if stage == "rl")
    components = [
        Chart(key, f"Reward: {key.removeprefix(FAMILY)}", "Reward components")
        for key in keys
        if key.startswith(FAMILY)
    ]
    others = [
        Chart(key, key, "Others")
        for key in keys
        if key not in KNOWN | NOT_CURVES and not key.startswith((FAMILY, "seconds_", "started_"))
    ]
    return [*CHARTS[:RESULTS], *components, *CHARTS[RESULTS:], *others]


def _curve(chart: Chart, of_runs: Sequence[Curve]) -> dict[str, Any]:
    metric = MEANINGS.get(chart.key.rpartition("/")[2] if chart.section == "Supervised" else chart.key)
    banded = any(low is not None for width, points in of_runs if width == 1 for _, _, low, _ in points)
    binned = any(width > 1 for width, _ in of_runs)
    return asdict(chart) | {
        "about": metric.meaning if metric else "",
        "unit": metric.unit if metric else "",
        "band": "; ".join([_about_band(chart.key)] * banded + [OF_BINS] * binned),
        "runs": [_columns(points, width) for width, points in of_runs],
    }


def _points(run: Run, key: str, statistics: Sequence[StepStatistics]) -> Curve:
    width, plain = _plain(run.history.of("rl", key))
    if width > 1:
        return width, plain
    found = {one.step: one for one in statistics}
    points: list[Point] = []
    for step, value, *_ in plain:
        known = step in found or not found or key == "validation_solved"
        low, high = (known and band_of(run, step, key, value, found.get(step))) or (None, None)
        points.append((step, value, low, high))
    return width, points


def _plain(series: Series) -> Curve:
    """Steps without a band; of several steps their mean, from the lowest to the highest of them."""
    if series.width == 1:
        return 1, [(one.first, one.mean, None, None) for one in series.bins]
    return series.width, [((one.first + one.last) // 2, one.mean, one.low, one.high) for one in series.bins]


def band_of(run: Run, step: int, key: str, value: float, found: StepStatistics | None) -> Interval | None:
    """The 95 % interval of a step's value of a metric, or None where the metric is no mean over completions.

    From the stored completions where there are any, by group; else of a share Wilson's interval for the
    number of completions that the configuration says. A task of one's own may give numbers that have none.
    """
    share = min(1.0, max(0.0, value))
    if key == "validation_solved":
        logged = run.history.of("rl", "validation_examples").at(step)
        examples = logged or run.setting("evaluation.validation_examples", 0)
        return wilson(share * examples, examples)
    if found is not None and key in SHARES:
        means = found.shares[key]
        return share_band(means, found.completions) if all(0 <= mean <= 1 for mean in means) else None
    if found is not None and key in found.rewards:
        return mean_band(found.rewards[key]) if np.isfinite(found.rewards[key]).all() else None
    if key in SHARES:
        dropped = run.history.of("rl", "dropped_groups").at(step) or 0
        groups = run.setting("rl.prompts_per_step", 0) - dropped
        completions = groups * run.setting("rl.group_size", 0)
        return wilson(share * completions, completions)
    return None


def _about_band(key: str) -> str:
    return OF_VALIDATION if key == "validation_solved" else OF_SHARES if key in SHARES else OF_MEANS


def _columns(points: Sequence[Point], width: int) -> dict[str, Any] | None:
    """Columns of numbers with as many digits as a picture shows; no bounds where there is no band.

    They are ``extremes`` where a point is of several steps.
    """
    if not points:
        return None
    steps, values, lows, highs = (list(column) for column in zip(*points, strict=True))
    columns: dict[str, Any] = {"steps": steps, "values": [_short(v) for v in values]}
    if any(low is not None for low in lows):
        columns |= {"low": [_short(v) for v in lows], "high": [_short(v) for v in highs]}
    return columns | ({"extremes": True} if width > 1 else {})


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
