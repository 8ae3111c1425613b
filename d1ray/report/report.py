"""`d1ray report`: the report of one run, or of several side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

from d1ray.config.errors import UserError
from d1ray.report.page import page
from d1ray.report.runs import read_runs
from d1ray.report.trace import write_trace
from d1ray.run.atomic import write_atomically

MOST_RUNS = 8  # colours that can be told apart


def report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about the runs in ``folders``; returns where.

    Without ``output`` that is ``report.html`` in the folder of a single run, or of several
    ``comparison.html`` in the working directory.

    Raises:
        UserError: a folder holds no run, there are too many of them, or the page cannot be written.
    """
    runs = read_runs(folders)
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs were given; a report compares at most {MOST_RUNS}")
    if output is None:
        output = runs[0].path / "report.html" if len(runs) == 1 else Path("comparison.html")
    written = page(runs, time.strftime("%Y-%m-%d %H:%M"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, written)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}; choose --output FILE") from error
    return output


def trace(folders: Sequence[Path], output: Path) -> Path:
    """Writes the trace of the run in ``folders``; returns where.

    Raises:
        UserError: there are several runs, it recorded no start times, or the trace cannot be written.
    """
    runs = read_runs(folders)
    if len(runs) > 1:
        raise UserError(f"a trace is of one run; {len(runs)} were given")
    try:
        write_trace(runs[0], output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}; choose --trace FILE") from error
    return output
