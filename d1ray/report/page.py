"""The page: what goes in, compressed, and the template that it goes into."""

import base64
import gzip
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import d1ray.page
from d1ray.report import tables
from d1ray.report.counts import MOST_NAMED
from d1ray.report.curves import OF_SHARES, curves
from d1ray.report.runs import Run
from d1ray.report.sample import sample
from d1ray.report.signs import SIGNS
from d1ray.report.statistics import ANY_SIGN, StepStatistics, share_band, step_statistics

MOST_BYTES = 2_900_000
BUDGETS = (500_000, 250_000, 125_000, 60_000, 30_000)  # tokens of completions, until the page is small enough
STYLES = ("base.css", "report.css")
SCRIPTS = (
    "elements.js",
    "theme.js",
    "tokens.js",
    "numbers.js",
    "runs.js",
    "chart.js",
    "curves.js",
    "phases.js",
    "signs.js",
    "playback.js",
    "completion.js",
    "browser.js",
    "main.js",
)

MODULE_LINES = re.compile(r"^import .*\n|^export ", re.MULTILINE)


def page(runs: Sequence[Run], written: str) -> str:
    """The HTML page about ``runs``, below ``MOST_BYTES`` unless their curves alone are more.

    Args:
        written: when, as text.
    """
    statistics = [list(step_statistics(run)) for run in runs]
    drawn = curves(runs, statistics)
    html = ""
    for budget in BUDGETS:
        taken = sample(runs, budget)
        data = {
            "runs": [{"name": run.name, "task": run.setting("task.name", "")} for run in runs],
            "curves": drawn,
            "phases": [tables.phase_seconds(run) for run in runs],
            "signs": _signs(statistics),
            "share_band": OF_SHARES,
            "completions": {
                "vocabulary": taken.vocabulary.texts,
                "ends": sorted(taken.vocabulary.ends),
                "groups": taken.groups,
                "rows": taken.rows,
            },
        }
        html = _render(runs, statistics, written, taken.rules, data)
        if len(html.encode()) <= MOST_BYTES:
            break
    return html


def packed(data: Mapping[str, Any]) -> str:
    """JSON, compressed, as base64: it holds no character that means anything in HTML."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _render(
    runs: Sequence[Run],
    statistics: Sequence[Sequence[StepStatistics]],
    written: str,
    rules: Sequence[str],
    data: Mapping[str, Any],
) -> str:
    script = _joined(SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("d1ray.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f} %"
    return environment.get_template("report.html").render(
        runs=[_about(run, ran) for run, ran in zip(runs, statistics, strict=True)],
        tasks=sorted({str(run.setting("task.name", "?")) for run in runs}),
        written=written,
        results=tables.results(runs),
        failures=_failure_rows(runs, statistics),
        dropped=[{"run": run.name, **row} for run in runs for row in run.dropped],
        differences=tables.differences(runs),
        settings=tables.flat_settings(runs[0].config),
        rules=rules,
        style=Markup("\n".join(map(_asset, STYLES))),
        script=Markup(script),
        script_digest=digest,
        data=packed(data),
    )


def _joined(scripts: Sequence[str]) -> str:
    """All of them as one script: in its one scope modules need neither import nor export."""
    parts = [MODULE_LINES.sub("", _asset(name)) for name in scripts]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _asset(name: str) -> str:
    """The text of a file of the page: its own, or one that all pages have."""
    own = importlib.resources.files("d1ray.report") / "page" / name
    file = own if own.is_file() else importlib.resources.files(d1ray.page) / name
    return file.read_text(encoding="utf-8")


def _about(run: Run, statistics: Sequence[StepStatistics]) -> dict[str, Any]:
    """What the head of the page says about a run."""
    best = run.history.of("rl", "validation_solved").best
    return {
        "name": run.name,
        "path": str(run.path),
        "task": run.setting("task.name", "?"),
        "algorithm": tables.algorithm_title(run) or "SFT only",
        "seed": run.setting("seed", "?"),
        "step": run.history.last.get("rl", 0),
        "steps": run.setting("rl.steps", 0),
        "best": best and (best[1], best[0]),
        "seconds": run.summary.get("seconds", {}),
        "memory": run.summary.get("peak_memory_bytes"),
        "missing": run.missing,
        "completions": sum(one.completions for one in statistics),
    }


def _failure_rows(
    runs: Sequence[Run], statistics: Sequence[Sequence[StepStatistics]]
) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """Name, explanation, and for each run how often and in which steps."""
    of_runs = [tables.failures(run, found) for run, found in zip(runs, statistics, strict=True)]
    return [
        (kind[0].name, kind[0].about, [(one.total, _some_steps(one)) for one in kind])
        for kind in zip(*of_runs, strict=True)
    ]


def _some_steps(failure: tables.Failure) -> str:
    named = failure.steps[:MOST_NAMED]
    shown = ", ".join(map(str, named))
    if failure.in_steps > len(named):
        shown += f" and {failure.in_steps - len(named)} more"
    return f"step{'s' if failure.in_steps > 1 else ''} {shown}" if named else ""


def _signs(statistics: Sequence[Sequence[StepStatistics]]) -> list[dict[str, Any]]:
    """For each sign, and for any of them: its curve of every run, and how often it occurs in all."""
    return [
        {
            "name": name,
            "counts": counts,
            "runs": [_sign_curve(name, found) for found in statistics],
            "totals": [_sign_totals(name, found) for found in statistics],
        }
        for name, counts in ((ANY_SIGN, "at least one of these"), *((s.name, s.counts) for s in SIGNS))
    ]


def _sign_curve(name: str, found: Sequence[StepStatistics]) -> dict[str, list[float]] | None:
    if not found:
        return None
    bands = [share_band(one.shares[name], one.completions) for one in found]
    return {
        "steps": [one.step for one in found],
        "values": [round(one.signs[name][0] / one.completions, 5) for one in found],
        "low": [round(low, 5) for low, _ in bands],
        "high": [round(high, 5) for _, high in bands],
    }


def _sign_totals(name: str, found: Sequence[StepStatistics]) -> dict[str, int]:
    return {
        "completions": sum(one.completions for one in found),
        "with": sum(one.signs[name][0] for one in found),
        "solved": sum(one.signs[name][1] for one in found),
    }
