"""Live progress: a bar per stage with its metrics on a terminal, plain lines anywhere else."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL_S = 5.0
SMOOTHING_S = 60.0

# How a metric is shown; a metric not named here is not shown. Fractions are in [0, 1].
FORMATS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "reward": lambda value: f"reward {value:.3f}",
    "solved": lambda value: f"solved {100 * value:.1f} %",
    "validation_solved": lambda value: f"validation {100 * value:.1f} %",
    "kl": lambda value: f"KL {value:.4f}",
    "clip_fraction": lambda value: f"clip {100 * value:.1f} %",
    "tokens_per_s": lambda value: f"{value:,.0f} tokens/s",
}


class Stage:
    """One stage's steps, metrics and pace; made by ``Progress.stage``."""

    def __init__(
        self,
        name: str,
        total: int | None,
        done: int,
        clock: Callable[[], float],
        updated: Callable[["Stage"], None],
    ) -> None:
        self.name = name
        self.total = total
        self.step = done
        self.metrics: Mapping[str, float] = {}
        self.finished = False
        self._clock = clock
        self._updated = updated
        self._started_s = self._paced_s = clock()
        self._elapsed_s = 0.0  # final, once finished
        self._recent_s = self._recent_steps = 0.0

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that ``step`` steps are done, of which ``metrics`` are the latest numbers.

        Any subset of ``FORMATS`` may be given; the others keep their last value. Values that are not
        numbers, and names without a format, are ignored. Never raises on either.
        """
        now = self._clock()
        if step > self.step:
            # Both sums decay with time, but never so fast that a single slow step is the whole estimate.
            decay = max(0.8, math.exp(-(now - self._paced_s) / SMOOTHING_S))
            self._recent_s = decay * self._recent_s + (now - self._paced_s)
            self._recent_steps = decay * self._recent_steps + (step - self.step)
            self._paced_s = now
        self.step = step
        # A new dict each time: the display's thread may be reading the old one.
        self.metrics = {**self.metrics, **_numbers(metrics or {})}
        self._updated(self)

    def finish(self) -> None:
        """Stops the stage's clock."""
        self._elapsed_s = self.elapsed_s
        self.finished = True

    @property
    def elapsed_s(self) -> float:
        return self._elapsed_s if self.finished else self._clock() - self._started_s

    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at the recent pace; None while there is no pace or no total."""
        if self.finished or self.total is None or not self._recent_steps:
            return None
        remaining_s = (self.total - self.step) * self._recent_s / self._recent_steps
        return max(0.0, remaining_s - (self._clock() - self._paced_s))

    @property
    def count(self) -> str:
        """``12/36``, or ``12`` when the total is unknown."""
        return f"{self.step}" if self.total is None else f"{self.step}/{self.total}"

    def metrics_text(self) -> str:
        return "  ".join(FORMATS[key](self.metrics[key]) for key in FORMATS if key in self.metrics)


class Progress:
    """Owns the display while its block runs.

    On a terminal, rich redraws one bar per stage and the running stage's metrics. When the output is
    not a terminal, or ``TERM=dumb``, or ``CI`` is set, plain lines without control codes are printed:
    at a stage's start and end, at every tenth of its steps, and else at most one every 5 seconds.

    Example:
        with Progress() as progress, progress.stage("diffu-GRPO", total=36) as stage:
            stage.update(1, {"reward": 0.4, "solved": 0.3})
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds, never decreasing."""
        self.console = console or Console()
        self._clock = clock
        self._stages: list[Stage] = []
        self._plain = (
            not self.console.is_terminal or self.console.is_dumb_terminal or bool(os.environ.get("CI"))
        )
        self._live: Live | None = None
        self._printed_s = -math.inf
        self._printed_step = 0

    def __enter__(self) -> Self:
        if not self._plain:
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def stage(self, name: str, total: int | None, done: int = 0) -> Iterator[Stage]:
        """Shows a stage of ``total`` steps (None: unknown), ``done`` of which an earlier run took."""
        stage = Stage(name, total, done, self._clock, self._on_update)
        self._stages.append(stage)
        if self._plain:
            resumed = f", resuming at step {done}" if done else ""
            self._print(stage, f"{name}: started{'' if total is None else f', {total} steps'}{resumed}")
        ending = "stopped"
        try:
            yield stage
            ending = "done"
        finally:
            stage.finish()
            if self._plain:
                self._print(stage, _line(stage, ending))

    def note(self, text: str) -> None:
        """Prints a line above the display."""
        self.console.print(Text(text), highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """What the live display shows now; called by its thread."""
        bars = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right", "right", "left"):
            bars.add_column(justify=justify, no_wrap=True)
        for stage in list(self._stages):
            unknown = stage.total is None and not stage.finished
            total = float(stage.total) if stage.total is not None else float(max(stage.step, 1))
            bars.add_row(
                Text(stage.name, style="dim" if stage.finished else "bold"),
                ProgressBar(total=total, completed=min(stage.step, total), width=24, pulse=unknown),
                stage.count,
                duration(stage.elapsed_s),
                "" if (eta_s := stage.eta_s) is None else f"ETA {duration(eta_s)}",
            )
        metrics = self._stages[-1].metrics_text() if self._stages else ""
        return Group(bars, Text(metrics, style="cyan")) if metrics else bars

    def _on_update(self, stage: Stage) -> None:
        if not self._plain:
            return
        due = self._clock() - self._printed_s >= PLAIN_INTERVAL_S
        if due or _tenths(stage.step, stage.total) > _tenths(self._printed_step, stage.total):
            self._print(stage, _line(stage))

    def _print(self, stage: Stage, line: str) -> None:
        self.note(line)
        self._printed_s, self._printed_step = self._clock(), stage.step


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3675`` as ``1:01:15``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _line(stage: Stage, ending: str = "") -> str:
    parts = [f"{stage.name}: {ending} {stage.count}" if ending else f"{stage.name}: {stage.count}"]
    if metrics := stage.metrics_text():
        parts.append(metrics)
    parts.append(f"elapsed {duration(stage.elapsed_s)}")
    if (eta_s := stage.eta_s) is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return "  ".join(parts)


def _tenths(step: int, total: int | None) -> int:
    return 10 * step // total if total else 0


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for key, value in metrics.items():
        try:
            numbers[key] = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return numbers
