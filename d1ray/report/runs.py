"""A run folder as the report reads it: whatever is there, and words for what is not. Nothing is written."""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from d1ray.config.errors import DataError, UserError
from d1ray.report.counts import Counts
from d1ray.run.history import History
from d1ray.run.rows import each_line, read_rows

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: what the report calls it.
        path: the folder.
        config: ``config.yaml``.
        history: the numbers of ``metrics.jsonl``, in bounded memory.
        counts: what it counts as failed.
        summary: ``summary.json``, {} if there is none yet.
        dropped: ``dropped.jsonl``: groups that were given up, each once.
        rollouts: the files of completed steps, in their order.
        missing: a sentence for each thing that is not there or cannot be read; it may grow.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    history: History
    counts: Counts
    summary: Mapping[str, Any]
    dropped: Sequence[Row]
    rollouts: Sequence[Path]
    missing: list[str]

    def rl_rows(self) -> Iterator[Row]:
        """The rows of the RL stage, read anew."""
        return (row for row, _ in each_line(self.path / "metrics.jsonl") if row.get("stage") == "rl")

    def setting(self, key: str, default: Any = None) -> Any:
        """The setting with a dotted key, or ``default`` where the run has none."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return default if value is None else value


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in ``paths``, each once, called by as much of their paths as tells them apart.

    Raises:
        UserError: a folder holds no run.
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    return [read_run(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]


def read_run(path: Path, name: str) -> Run:
    """What there is of the run in the folder ``path``.

    Raises:
        UserError: there is no readable ``config.yaml``.
    """
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"{path} is no run folder: it holds no config.yaml; give the run_dir of a d1ray run")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no settings; give the run_dir of a d1ray run")
    missing: list[str] = []
    history, counts = _read(path / "metrics.jsonl", _metrics, missing) or (History(), Counts())
    last = history.last.get("rl")
    summary = _read(path / "summary.json", lambda file: json.loads(file.read_text(encoding="utf-8")), missing)
    dropped = _read(path / "dropped.jsonl", read_rows, missing) if (path / "dropped.jsonl").exists() else None
    files = (path / "rollouts").glob("step-*.parquet")
    steps = {step: file for file in files if (step := step_of(file)) >= 0}  # and not a "step-1 copy.parquet"
    rollouts = [steps[step] for step in sorted(steps) if last is None or step <= last]
    if config.get("rl") and not rollouts:
        missing.append("rollouts/ holds no completions")
    return Run(
        name=name,
        path=path,
        config=config,
        history=history,
        counts=counts,
        summary=summary if isinstance(summary, dict) else {},
        dropped=list({(row.get("step"), row.get("group_id")): row for row in dropped or []}.values()),
        rollouts=rollouts,
        missing=missing,
    )


def step_of(file: Path) -> int:
    """The step whose rollouts ``file`` holds; -1 of a file with another name."""
    number = file.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def read_table(run: Run, file: Path, columns: Sequence[str]) -> pa.Table | None:
    """``columns`` of a file of rollouts, those it lacks as nulls; None, and noted, if it is damaged."""
    try:
        with pq.ParquetFile(file) as stored:
            have, rows = set(stored.schema_arrow.names), stored.metadata.num_rows
            table = stored.read([name for name in columns if name in have])
    except (OSError, pa.ArrowException) as error:
        note(run.missing, f"rollouts/{file.name} cannot be read: {_first_line(error)}")
        return None
    lacking = [name for name in columns if name not in have]
    if lacking:
        note(run.missing, f"the rollouts have no {', '.join(lacking)}: they were not recorded")
    for name in lacking:
        table = table.append_column(name, pa.nulls(rows))
    return table.select(list(columns))


def note(missing: list[str], sentence: str) -> None:
    """Adds a sentence once."""
    if sentence not in missing:
        missing.append(sentence)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many of its parents as tell it from the others."""
    names = [folder.name or str(folder) for folder in folders]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return names


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """All ``items``, or ``most`` of them at equal distances, the first and the last among them.

    Example:
        >>> evenly([0, 1, 2, 3, 4], 3)
        [0, 2, 4]
    """
    if len(items) <= most:
        return list(items)
    if most <= 1:
        return list(items[:most])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def over_steps(files: Sequence[Path], most: int) -> list[Path]:
    """All files of rollouts, which are by step, or at most ``most`` of them: at equal distances from the
    first step to the last, wherever more were kept."""
    if len(files) <= most or most <= 1:
        return list(files[:most])
    steps = [step_of(file) for file in files]
    apart = (steps[-1] - steps[0]) / (most - 1)
    wanted = [round(steps[0] + i * apart) for i in range(most)]
    places = [bisect_left(steps, step) for step in wanted]
    near = [
        place - (place > 0 and step - steps[place - 1] < steps[place] - step)
        for place, step in zip(places, wanted, strict=True)
    ]
    return [files[place] for place in dict.fromkeys(near)]


def _metrics(file: Path) -> tuple[History, Counts]:
    """All that the report shows of the metrics, read once."""
    history, counts = History(), Counts()
    for row, _ in each_line(file):
        history.add(row)
        counts.add(row)
    return history, counts


def _read(file: Path, reader: Callable[[Path], Any], missing: list[str]) -> Any:
    """What ``reader`` makes of ``file``; None, and noted as missing, where it cannot."""
    try:
        return reader(file)
    except FileNotFoundError:
        missing.append(f"there is no {file.name}" + (" yet" if file.name == "summary.json" else ""))
    except (OSError, DataError, ValueError) as error:
        missing.append(f"{file.name} cannot be read: {_first_line(error)}")
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
