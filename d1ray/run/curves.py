"""The curves of a run as one PNG: loss, reward, validation, KL, and where the time went."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d1ray.run.summary import StageResult, stage_labels

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Series: TypeAlias = tuple[list[float], list[float]]

PHASES = ("generate", "score", "logprob", "learn", "publish")
BLUE, ORANGE, GREEN, RED, GREY = "#2f6db3", "#e07b2a", "#2e9960", "#c8443c", "#8a8f98"
PHASE_COLOURS = (BLUE, "#8fb8de", ORANGE, GREEN, "#b39ddb")


def draw_curves(metrics: Rows, path: Path, results: Sequence[StageResult] | None = None) -> None:
    """Draws the rows of ``metrics.jsonl``, and the final ``results`` if given, to the PNG ``path``.

    A panel without data is left out; with none at all the picture says that nothing was recorded, so
    that ``path`` always exists afterwards. Missing, null and non-finite values are left out.
    """
    panels: list[Callable[[Axes], None]] = []
    rl = [row for row in metrics if row.get("stage") == "rl"]
    losses = _losses(metrics)
    if losses:
        panels.append(lambda axes: _draw_losses(axes, losses))
    if (reward := _series(rl, "reward"))[0]:
        panels.append(lambda axes: _draw_reward(axes, reward))
    if (validation := _series(rl, "validation_solved"))[0]:
        panels.append(lambda axes: _draw_validation(axes, validation))
    kl, clip = _series(rl, "kl"), _series(rl, "clip_fraction")
    if kl[0] or clip[0]:
        panels.append(lambda axes: _draw_kl_and_clip(axes, kl, clip))
    seconds = {phase: _series(rl, f"seconds_{phase}") for phase in PHASES}
    if any(steps for steps, _ in seconds.values()):
        panels.append(lambda axes: _draw_seconds(axes, seconds))
    measured = [result for result in results or () if result.n]
    if measured:
        panels.append(lambda axes: _draw_results(axes, measured))
    _save(_figure(panels), path)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value with up to ``window - 1`` before it: a step shows no later one."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = [max(0, end - window) for end in range(1, len(values) + 1)]
    return [float((sums[end] - sums[start]) / (end - start)) for end, start in enumerate(starts, start=1)]


def best_point(series: Series) -> tuple[float, float]:
    """The step and value of the highest point, the earliest if several are equally high."""
    steps, values = series
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    return steps[best], values[best]


def _series(rows: Iterable[Mapping[str, Any]], key: str) -> Series:
    """Steps and values of the rows that have a finite number under ``key``."""
    steps, values = [], []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values


def _losses(metrics: Rows) -> dict[str, Series]:
    stages = dict.fromkeys(str(row["stage"]) for row in metrics if row.get("stage") not in (None, "rl"))
    series = {
        stage: _series((row for row in metrics if row.get("stage") == stage), "loss") for stage in stages
    }
    return {stage: points for stage, points in series.items() if points[0]}


def _draw_losses(axes: Axes, losses: Mapping[str, Series]) -> None:
    for (stage, (steps, values)), colour in zip(losses.items(), _cycle(len(losses)), strict=True):
        line = smoothed(values, max(1, len(values) // 30))
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, line, _marker(steps), color=colour, label={"sft": "SFT"}.get(stage, stage))
    axes.set_ylim(bottom=0)
    _label(axes, "Masked training loss", legend=True)


def _draw_reward(axes: Axes, reward: Series) -> None:
    steps, values = reward
    window = max(2, len(values) // 10)
    axes.plot(steps, values, ".", color=BLUE, alpha=0.35, label="step")
    axes.plot(steps, smoothed(values, window), color=BLUE, label=f"mean of {window} steps")
    _label(axes, "RL: mean reward of a step", legend=True)


def _draw_validation(axes: Axes, validation: Series) -> None:
    steps, values = validation
    step, value = best_point(validation)
    axes.plot(steps, [100 * v for v in values], "o-", color=GREEN, markersize=4)
    axes.plot(
        step,
        100 * value,
        "*",
        color=ORANGE,
        markersize=13,
        label=f"best: {100 * value:.1f} % at step {step:g}",
    )
    axes.margins(y=0.15)
    _label(axes, "RL: validation puzzles solved, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_kl_and_clip(axes: Axes, kl: Series, clip: Series) -> None:
    lines = []
    if kl[0]:
        lines += axes.plot(*kl, _marker(kl[0]), color=BLUE, label="KL to the reference")
    if clip[0]:
        own = axes.twinx() if kl[0] else axes
        lines += own.plot(
            clip[0], [100 * v for v in clip[1]], _marker(clip[0]), color=RED, alpha=0.7, label="clipped, %"
        )
        own.set_ylim(0, max(1e-3, 130 * max(clip[1])))  # room for the legend
        own.tick_params(labelsize=8, labelcolor=RED if kl[0] else "black")
        own.spines["top"].set_visible(False)
    if kl[0]:
        axes.set_ylim(min(0.0, *kl[1]), max(1e-6, 1.3 * max(kl[1])))
    _label(axes, "RL: KL and clip fraction")
    axes.legend(handles=lines, frameon=False, fontsize=8, loc="upper left", ncols=2)


def _draw_seconds(axes: Axes, seconds: Mapping[str, Series]) -> None:
    """Bars stacked in the order of the phases; a phase not measured in a step has no height there."""
    steps = sorted({step for points, _ in seconds.values() for step in points})
    bottom = np.zeros(len(steps))
    for (phase, (points, values)), colour in zip(seconds.items(), PHASE_COLOURS, strict=True):
        if points:
            measured = dict(zip(points, values, strict=True))
            heights = np.array([measured.get(step, 0.0) for step in steps])
            axes.bar(steps, heights, bottom=bottom, width=1.0, color=colour, label=phase)
            bottom += heights
    axes.set_ylim(0, max(1e-3, 1.25 * float(bottom.max())))  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    _label(axes, "RL: seconds of a step by phase")


def _draw_results(axes: Axes, results: Sequence[StageResult]) -> None:
    labels = stage_labels(results)
    for x, (result, colour) in enumerate(zip(results, _cycle(len(results)), strict=True)):
        solved, (low, high) = 100 * result.solved, (100 * bound for bound in result.ci95)
        errors = [[max(0.0, solved - low)], [max(0.0, high - solved)]]
        axes.bar(x, solved, color=colour, width=0.6, yerr=errors, ecolor="#333333", capsize=4)
        axes.annotate(
            f"{solved:.1f} %", (x, high), (0, 4), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xticks(range(len(results)), [f"{labels[r.stage]}\n(n = {r.n:,})" for r in results])
    axes.set_ylim(0, 110)
    axes.set_xlim(-0.7, len(results) - 0.3)
    _label(axes, "Held-out puzzles solved, % (95 % interval)", xlabel="")


def _marker(steps: Sequence[float]) -> str:
    """A line, with dots while it is so short that it might not be seen."""
    return "-" if len(steps) > 5 else ".-"


def _cycle(n: int) -> list[str]:
    return [(GREY, BLUE, GREEN, ORANGE, RED)[i % 5] for i in range(n)]


def _label(axes: Axes, title: str, *, xlabel: str = "step", legend: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    if xlabel == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    if legend:
        axes.legend(frameon=False, fontsize=8)


def _figure(panels: Sequence[Callable[[Axes], None]]) -> Figure:
    columns = min(2 if len(panels) <= 4 else 3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "No metrics were recorded", ha="center", va="center", color=GREY)
    for place, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(rows, columns, place))
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG through a temporary file, without pyplot's global state: nothing to close."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, format="png", dpi=130)
    temporary.replace(path)
