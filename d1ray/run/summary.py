"""The result of a run: accuracy of each stage on held-out puzzles, as a table, as JSON and as samples."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Interval: TypeAlias = tuple[float, float]
Verdict: TypeAlias = tuple[bool, float, bool, tuple[str, ...]]
"""One completion's ``(correct, partial, formatted, tags)``, from its task's ``Score`` and ``Example``."""

SAMPLE_CHARACTERS = 800


class TagResult(NamedTuple):
    """Accuracy on the examples with one tag: how many, the fraction solved and its 95 % interval."""

    n: int
    solved: float
    ci95: Interval


@dataclass(frozen=True)
class StageResult:
    """One stage's accuracy on ``n`` held-out examples. All accuracies are fractions in [0, 1].

    ``cell`` is the mean graded accuracy (Sudoku: of the cells that were blank), ``solved`` the
    fraction strictly correct with its 95 % interval ``ci95``, ``format`` the fraction with an answer
    where one was asked for. With ``n=0`` the accuracies are NaN and the interval is [0, 1].
    ``algorithm`` is what the stage "rl" is called.
    """

    stage: str
    task: str
    n: int
    cell: float
    solved: float
    format: float
    ci95: Interval
    by_tag: dict[str, TagResult] = field(default_factory=dict)
    algorithm: str = "RL"


class Sample(NamedTuple):
    """One puzzle and its completions before and after training, as text up to the first EOS."""

    prompt: str
    reference: str
    before: str
    after: str
    before_correct: bool
    after_correct: bool


def wilson(successes: float, n: float, z: float = 1.96) -> Interval:
    """Wilson's score interval for a proportion; ``z=1.96`` gives 95 %.

    With p = successes / n:  (p + z²/2n  ±  z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Unlike the normal approximation it stays within [0, 1] and has a width at 0 and n successes.
    ``n=0`` knows nothing: [0, 1]. Raises ``ValueError`` unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"cannot have {successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding may leave the exact bounds 0 and 1 by one ulp.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarise(stage: str, task: str, verdicts: Sequence[Verdict], algorithm: str = "RL") -> StageResult:
    """Averages the verdicts on one stage's completions, over all of them and for each tag."""
    n = len(verdicts)
    solved = sum(correct for correct, _, _, _ in verdicts)
    by_tag = {}
    for tag in sorted({tag for _, _, _, tags in verdicts for tag in tags}):
        tagged = [correct for correct, _, _, tags in verdicts if tag in tags]
        by_tag[tag] = TagResult(len(tagged), sum(tagged) / len(tagged), wilson(sum(tagged), len(tagged)))
    return StageResult(
        stage=stage,
        task=task,
        n=n,
        cell=_mean(partial for _, partial, _, _ in verdicts),
        solved=solved / n if n else math.nan,
        format=_mean(formatted for _, _, formatted, _ in verdicts),
        ci95=wilson(solved, n),
        by_tag=by_tag,
        algorithm=algorithm,
    )


def stage_labels(results: Iterable[StageResult]) -> dict[str, str]:
    """What each stage is called in the table: RL says what it was trained on top of."""
    algorithms = {result.stage: result.algorithm for result in results}
    rl = algorithms.get("rl", "RL")
    names = {"sft": "SFT", "rl": f"SFT + {rl}" if "sft" in algorithms else rl}
    return {stage: names.get(stage, stage) for stage in algorithms}


def table(results: Sequence[StageResult]) -> Table:
    """The final table: a row per stage and, beneath it, one per tag (Sudoku: grids never seen)."""
    labels = stage_labels(results)
    tasks = ", ".join(dict.fromkeys(result.task for result in results))
    drawn = Table(title=f"Held-out puzzles: {tasks}" if tasks else "No results", title_justify="left")
    drawn.add_column("Stage", no_wrap=True)
    for heading in ("Cells", "Solved", "95 % interval", "Format", "Puzzles"):
        drawn.add_column(heading, justify="right")
    for result in results:
        drawn.add_row(
            Text(labels[result.stage]),
            percent(result.cell),
            Text(percent(result.solved), style="bold"),
            _interval(result.ci95),
            percent(result.format),
            f"{result.n:,}",
        )
        for tag, tagged in result.by_tag.items():
            drawn.add_row(
                Text(f"  {tag}"),
                "",
                percent(tagged.solved),
                _interval(tagged.ci95),
                "",
                f"{tagged.n:,}",
                style="dim",
            )
    return drawn


def as_rows(results: Iterable[StageResult]) -> list[dict[str, Any]]:
    """The rows of ``summary.json``; fractions in [0, 1]. An accuracy of NaN is written as null."""
    return [
        {
            "stage": result.stage,
            "task": result.task,
            "n": result.n,
            "cell": result.cell,
            "solved": result.solved,
            "format": result.format,
            "ci95": list(result.ci95),
            "tags": {
                tag: {"n": tagged.n, "solved": tagged.solved, "ci95": list(tagged.ci95)}
                for tag, tagged in result.by_tag.items()
            },
        }
        for result in results
    ]


def samples(pairs: Sequence[Sample | tuple[str, str, str, str, bool, bool]]) -> RenderableType:
    """A few completions before and after training, each beside its verdict."""
    panels = []
    for number, (prompt, reference, before, after, before_correct, after_correct) in enumerate(
        pairs, start=1
    ):
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("prompt", _printable(prompt))
        grid.add_row("answer", _printable(reference))
        grid.add_row(Text("before "), _printable(before))
        grid.add_row("", _verdict(before_correct))
        grid.add_row(Text("after "), _printable(after))
        grid.add_row("", _verdict(after_correct))
        panels.append(Panel(grid, title=f"Sample {number}", title_align="left", expand=False))
    return Group(*panels)


def percent(fraction: float) -> str:
    """``0.3125`` as ``31.2 %``; NaN as a dash."""
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else "-"


def _interval(bounds: Interval) -> str:
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f} %"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _verdict(correct: bool) -> Text:
    return Text("correct", style="green") if correct else Text("wrong", style="red")


def _printable(text: str) -> Text:
    """Model output as it can be shown: control characters escaped, never read as markup, not endless."""
    if not text.strip():
        return Text("(empty)", style="dim")
    shown = text.strip()
    if len(shown) > SAMPLE_CHARACTERS:
        shown = f"{shown[:SAMPLE_CHARACTERS]} ... ({len(shown) - SAMPLE_CHARACTERS} more characters)"
    return Text("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in shown))
