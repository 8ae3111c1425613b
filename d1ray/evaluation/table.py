"""Results of evaluations over tasks and lengths: ``results.json`` and a table laid out as d1's Table 1."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from d1ray.evaluation.samples import counted_ks, interval, majority, pass_at
from d1ray.run.summary import Interval


@dataclass(frozen=True)
class Share:
    """A mean over the examples, with its 95 % interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class Cell:
    """One task at one generation length. Shares are fractions in [0, 1].

    ``n`` counts examples (``dropped`` more had too long a prompt), each completed ``samples`` times;
    ``accuracy`` and all other shares are over all completions. ``partial`` is the task's graded accuracy
    (Sudoku: d1's cell accuracy). ``forwards_per_token`` counts denoising steps over generated positions;
    ``tokens_per_s`` is generated positions over the generators' busy seconds: one generator's speed.
    ``pass_at`` and ``majority`` are of several samples: the chance that one of k completions is right, and
    the accuracy of the answer given most often.
    """

    model: str
    task: str
    length: int
    n: int
    dropped: int
    samples: int
    accuracy: float
    ci95: Interval
    partial: float
    formatted: float
    parse_failures: float
    timeouts: int
    crashes: int
    forwards_per_token: float
    tokens_per_s: float
    pass_at: Mapping[int, Share]
    majority: Share | None


def cell_of(
    model: str,
    task: str,
    length: int,
    batches: Sequence[pa.Table],
    samples: int = 1,
    dropped: int = 0,
    vote: Callable[[str], str] = str,
) -> Cell:
    """What the finished batches of an evaluation come to; an example's ``samples`` rows are adjacent.

    ``vote`` makes answers that mean the same the same text.
    """
    rows = pa.concat_tables([t.drop_columns(["old_logps", "reference_logps"]) for t in batches])
    completions, right = rows.num_rows, rows["correct"].to_pylist()
    tokens = length * completions
    groups = [slice(first, first + samples) for first in range(0, completions, samples)]
    counts = [sum(right[group]) for group in groups]
    seconds = sum(float(table["seconds_generate"][0].as_py()) for table in batches)
    failures = rows["failure"].to_pylist()
    return Cell(
        model=model,
        task=task,
        length=length,
        n=len(groups),
        dropped=dropped,
        samples=samples,
        accuracy=sum(counts) / completions,
        ci95=interval([count / samples for count in counts], samples),
        partial=float(np.mean(rows["partial"].to_numpy())),
        formatted=sum(rows["formatted"].to_pylist()) / completions,
        parse_failures=rows["parsed"].null_count / completions,
        timeouts=failures.count("timeout"),
        crashes=failures.count("crash"),
        forwards_per_token=float(np.sum(rows["forwards"].to_numpy())) / tokens,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        pass_at={k: _share(pass_at(k, counts, samples), samples) for k in counted_ks(samples) if samples > 1},
        majority=_share(_majorities(rows["parsed"].to_pylist(), right, groups, vote), 1)
        if samples > 1
        else None,
    )


def _majorities(
    parsed: list[str | None], right: list[bool], groups: Sequence[slice], vote: Callable[[str], str]
) -> list[float]:
    votes = [None if answer is None else vote(answer) for answer in parsed]
    return [float(majority(votes[group], right[group])) for group in groups]


def _share(values: Sequence[float], samples: int) -> Share:
    return Share(float(np.mean(values)), interval(values, samples))


def as_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells as JSON values."""
    return [asdict(cell) for cell in cells]


def markdown(cells: Sequence[Cell]) -> str:
    """A row a model and a column a task and length, in percent; below, each cell's interval and cost."""
    columns = list(dict.fromkeys((cell.task, cell.length) for cell in cells))
    by_place = {(cell.model, cell.task, cell.length): cell for cell in cells}
    lines = [
        "| accuracy, % | " + " | ".join(f"{task} {length}" for task, length in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for model in dict.fromkeys(cell.model for cell in cells):
        row = [by_place.get((model, *column)) for column in columns]
        lines.append(
            f"| {model} | " + " | ".join(f"{100 * c.accuracy:.1f}" if c else "-" for c in row) + " |"
        )
    lines += [
        "",
        "| task, length | n | accuracy (95 % interval) | partial | no answer | forwards a token | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        lines.append(
            f"| {c.task} {c.length} | {c.n} | "
            f"{_with_interval(Share(c.accuracy, c.ci95))} | "
            f"{100 * c.partial:.1f} % | {100 * c.parse_failures:.1f} % | {c.forwards_per_token:.3f} | "
            f"{c.tokens_per_s:.0f} |"
        )
    sampled = [c for c in cells if c.samples > 1]
    if sampled:
        lines += ["", "| task, length | samples | right at least once in k | majority |", "|---|---|---|---|"]
    for c in sampled:
        at = ", ".join(f"pass@{k} {_with_interval(share)}" for k, share in c.pass_at.items())
        vote = f"maj@{c.samples} {_with_interval(c.majority)}" if c.majority else ""
        lines.append(f"| {c.task} {c.length} | {c.samples} | {at} | {vote} |")
    return "\n".join(lines) + "\n"


def _with_interval(share: Share) -> str:
    low, high = share.ci95
    return f"{100 * share.value:.1f} % ({100 * low:.1f} - {100 * high:.1f})"
