"""The curves of a run as one PNG: loss, reward, validation, KL, and where the time went."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d1ray.run.history import History, Series
from d1ray.run.summary import StageResult, stage_labels

PHASES = ("generate", "score", "logprob", "learn", "publish")
BLUE, ORANGE, GREEN, RED, GREY = "#2f6db3", "#e07b2a", "#2e9960", "#c8443c", "#8a8f98"
PHASE_COLOURS = (BLUE, "#8fb8de", ORANGE, GREEN, "#b39ddb")


def draw_curves(history: History, path: Path, results: Sequence[StageResult] | None = None) -> None:
    """Draws a run's metrics, and the final ``results`` if given, to the PNG ``path``.

    A panel without data is left out; with none at all the picture says that nothing was recorded, so
    that ``path`` always exists afterwards. Of a long run a point is the mean of several steps, in a band
    from the lowest to the highest of them.
    """
    panels: list[Callable[[Axes], None]] = []
    losses = {stage: loss for (stage, key), loss in history.series.items() if key == "loss" and stage != "rl"}
    if losses:
        panels.append(lambda axes: _draw_losses(axes, losses))
    if reward := history.of("rl", "reward"):
        panels.append(lambda axes: _draw_reward(axes, reward))
    if validation := history.of("rl", "validation_solved"):
        panels.append(lambda axes: _draw_validation(axes, validation))
    kl, clip = history.of("rl", "kl"), history.of("rl", "clip_fraction")
    if kl or clip:
        panels.append(lambda axes: _draw_kl_and_clip(axes, kl, clip))
    seconds = {phase: history.phases[phase] for phase in PHASES if history.of("rl", f"seconds_{phase}")}
    if seconds:
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


def _points(series: Series, scale: float = 1) -> tuple[list[float], list[float]]:
    """Steps and means."""
    return [(one.first + one.last) / 2 for one in series.bins], [scale * one.mean for one in series.bins]


def _band(axes: Axes, series: Series, colour: str, scale: float = 1) -> None:
    """From the lowest to the highest, where a point is of several steps."""
    if series.width > 1:
        low, high = ([scale * getattr(one, end) for one in series.bins] for end in ("low", "high"))
        axes.fill_between(_points(series)[0], low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_losses(axes: Axes, losses: Mapping[str, Series]) -> None:
    for (stage, series), colour in zip(losses.items(), _cycle(len(losses)), strict=True):
        steps, values = _points(series)
        line = smoothed(values, max(1, len(values) // 30))
        _band(axes, series, colour)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, line, _marker(steps), color=colour, label={"sft": "SFT"}.get(stage, stage))
    axes.set_ylim(bottom=0)
    _label(axes, "Masked training loss", legend=True)


def _draw_reward(axes: Axes, reward: Series) -> None:
    steps, values = _points(reward)
    window = max(2, len(values) // 10)
    _band(axes, reward, BLUE)
    axes.plot(steps, values, ".", color=BLUE, alpha=0.35, label=_each(reward))
    axes.plot(steps, smoothed(values, window), color=BLUE, label=f"mean of {window * reward.width:,} steps")
    _label(axes, "RL: mean reward of a step", legend=True)


def _draw_validation(axes: Axes, validation: Series) -> None:
    assert validation.best is not None
    step, value = validation.best
    _band(axes, validation, GREEN, 100)
    axes.plot(*_points(validation, 100), "o-" if validation.width == 1 else "-", color=GREEN, markersize=4)
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
    if kl:
        _band(axes, kl, BLUE)
        lines += axes.plot(*_points(kl), _marker(kl.bins), color=BLUE, label="KL to the reference")
    if clip:
        own = axes.twinx() if kl else axes
        _band(own, clip, RED, 100)
        lines += own.plot(*_points(clip, 100), _marker(clip.bins), color=RED, alpha=0.7, label="clipped, %")
        own.set_ylim(0, max(1e-3, 130 * max(one.high for one in clip.bins)))  # room for the legend
        own.tick_params(labelsize=8, labelcolor=RED if kl else "black")
        own.spines["top"].set_visible(False)
    if kl:
        lowest, highest = min(one.low for one in kl.bins), max(one.high for one in kl.bins)
        axes.set_ylim(min(0.0, lowest), max(1e-6, 1.3 * highest))
    _label(axes, "RL: KL and clip fraction")
    axes.legend(handles=lines, frameon=False, fontsize=8, loc="upper left", ncols=2)


def _draw_seconds(axes: Axes, seconds: Mapping[str, Series]) -> None:
    """Bars stacked in the order of the phases; a phase not measured in a step has no height there."""
    bottom = np.zeros(len(next(iter(seconds.values())).bins))  # all have the same steps
    for phase, colour in zip(PHASES, PHASE_COLOURS, strict=True):
        if series := seconds.get(phase):
            steps, means = _points(series)
            axes.bar(steps, means, bottom=bottom, width=series.width, color=colour, label=phase)
            bottom += np.array(means)
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


def _each(series: Series) -> str:
    return "step" if series.width == 1 else f"{series.width:,} steps, lowest to highest"


def _marker(steps: Sequence[object]) -> str:
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
