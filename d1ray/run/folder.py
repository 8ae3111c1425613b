"""A run's folder: its configuration, metrics, TensorBoard events, rollouts, checkpoints and final table.

```
run_dir/
  config.yaml           the complete resolved configuration
  metrics.jsonl         one JSON object a step
  tensorboard/STAGE/    the same numbers as events, tagged STAGE/KEY
  rollouts/  checkpoints/  models/
  dropped.jsonl         groups that were given up, if any, and why
  rolled-back/          metrics and rollouts of steps that were taken again, if any
  saved.json            the step of RL's newest checkpoint, noted when the next begins or the run ends
  summary.json  curves.png  report.html
```

A folder is a run once it has a ``config.yaml``, which appears by rename after the folders: a refused or
killed start leaves no half-written run behind.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeAlias

import yaml

from d1ray.config.errors import DataError, UserError
from d1ray.config.run import Config
from d1ray.run.atomic import write_atomically

Row: TypeAlias = Mapping[str, float | int | str]
ROLLOUTS = re.compile(r"step-(\d+)\.parquet")
CHANGEABLE = ("rl.steps", "run_dir", "checkpoint_path", "about", "cluster", "tracking")


class RunFolder:
    """Owns one run's directory and the files open in it. Use it as a context manager, one at a time.

    Example:
        with RunFolder.open(Path("runs/sudoku-tiny"), config) as run:
            run.log({"stage": "rl", "step": 1, "reward": 0.25})
    """

    def __init__(self, path: Path) -> None:
        """Takes over a prepared directory; use ``open``. Drops a last line that a crash tore."""
        self.path = path
        self.config_path = path / "config.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.models = path / "models"
        self.rolled_back = path / "rolled-back"
        self.saved_path = path / "saved.json"
        self.summary_path = path / "summary.json"
        self.curves_path = path / "curves.png"
        _end_with_whole_line(self.metrics_path)
        self._metrics: TextIO = self.metrics_path.open("a", encoding="utf-8")
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int] = {}
        self.listeners: list[Callable[[Row], None]] = []  # told of every row that is logged

    @classmethod
    def open(cls, path: Path, config: Config) -> Self:
        """Creates the run folder ``path`` (parents too), or reopens it to continue its run.

        A reopened run must have the same configuration, except where it may change without becoming
        another run: those of ``CHANGEABLE``.

        Raises:
            UserError: the folder holds another run or other files, or cannot be written.
        """
        resolved = config.model_dump(mode="json")
        config_path = path / "config.yaml"
        try:
            if config_path.exists():
                _check_same_run(config_path, resolved)
            elif path.is_dir() and (found := _visible_entries(path)):
                raise UserError(
                    f"run_dir={path} holds files but no run (no config.yaml; found {found[0]!r}): "
                    f"choose an empty or new folder with run_dir=DIR"
                )
            for folder in (path, *(path / name for name in ("rollouts", "checkpoints", "models"))):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(config_path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
            return cls(path)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {path}: {error.strerror or error}; "
                f"choose a folder you can write with run_dir=DIR"
            ) from error

    def log(self, row: Row) -> None:
        """Appends ``row`` to ``metrics.jsonl``, flushed, and its numbers to TensorBoard.

        ``row`` has ``stage`` (a name such as ``"rl"``) and ``step`` (an int). NaN and infinities are
        stored as null. TensorBoard gets no ``started_*``: they are Unix seconds. Raises ``ValueError`` if
        either key is missing.
        """
        if "stage" not in row or "step" not in row:
            raise ValueError(f"a metrics row needs 'stage' and 'step', got the keys {sorted(row)}")
        stage, step = str(row["stage"]), int(row["step"])
        self._metrics.write(_to_json(row) + "\n")
        self._metrics.flush()
        writer = self._writer(stage)
        for key, value in row.items():
            measured = key not in ("stage", "step") and not key.startswith("started_")
            if measured and isinstance(value, Real):
                writer.add_scalar(f"{stage}/{key}", float(value), step)
        for tell in self.listeners:
            tell(row)

    def note_dropped(self, row: Mapping[str, Any]) -> None:
        """Appends a group that was given up to ``dropped.jsonl``."""
        with (self.path / "dropped.jsonl").open("a", encoding="utf-8") as file:
            file.write(_to_json(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged row in order. Raises ``DataError`` naming the line that is not a JSON object."""
        return read_rows(self.metrics_path)

    def truncate_metrics(self, stage: str, after_step: int) -> None:
        """Moves aside what ``stage`` logged after ``after_step``: the steps a resumed run takes again.

        ``after_step=-1`` moves the whole stage. TensorBoard hides the same steps.
        """
        kept: list[dict[str, Any]] = []
        aside: list[dict[str, Any]] = []
        for row in self.metrics():
            later = row.get("stage") == stage and row["step"] > after_step
            (aside if later else kept).append(row)
        if aside:
            self.rolled_back.mkdir(exist_ok=True)
            with (self.rolled_back / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(_to_json(row) + "\n" for row in aside)
        self._metrics.close()
        write_atomically(self.metrics_path, "".join(_to_json(row) + "\n" for row in kept))
        self._metrics = self.metrics_path.open("a", encoding="utf-8")
        if stage in self._writers:
            self._writers.pop(stage).close()
        self._purge[stage] = after_step + 1

    def set_rollouts_aside(self, after_step: int) -> None:
        """Moves aside the rollouts of later steps."""
        for file in sorted(self.rollouts.iterdir()):
            step = ROLLOUTS.fullmatch(file.name)
            if step and int(step[1]) > after_step:
                self.rolled_back.mkdir(exist_ok=True)
                before = len(list(self.rolled_back.glob(f"{file.stem}*")))  # rolled back earlier
                file.replace(self.rolled_back / f"{file.stem}{f'-{before + 1}' * (before > 0)}.parquet")

    def note_saved(self, stage: str, step: int) -> None:
        """Remembers that the stage's checkpoint of a step is written."""
        write_atomically(self.saved_path, _to_json(self._saved() | {stage: step}) + "\n")

    def saved_step(self, stage: str) -> int:
        """The step of the newest checkpoint that was written, 0 if none was."""
        return int(self._saved().get(stage, 0))

    def write_summary(self, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> None:
        """Writes ``summary.json``: ``{"rows": [...], **extra}``, replaced as a whole."""
        write_atomically(self.summary_path, _to_json({"rows": list(rows), **extra}, indent=2) + "\n")

    def close(self) -> None:
        """Closes the metrics file and the TensorBoard events; closing twice is harmless."""
        self._metrics.close()
        while self._writers:
            self._writers.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _saved(self) -> dict[str, Any]:
        if not self.saved_path.exists():
            return {}
        try:
            return dict(json.loads(self.saved_path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.saved_path} cannot be read: {error}; remove it") from error

    def _writer(self, stage: str) -> Any:
        """The stage's event writer. Stages have a folder each: a purge hides steps of the whole folder."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import: only when logging

            self._writers[stage] = SummaryWriter(
                str(self.tensorboard / stage), purge_step=self._purge.pop(stage, None), flush_secs=10
            )
        return self._writers[stage]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line; a last line that is not ended yet is left out.

    Raises:
        DataError: names the line that is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: {error}; remove the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object; remove the line")
            rows.append(row)
    return rows


def _end_with_whole_line(path: Path) -> None:
    """Cuts what follows the last newline: a line is written with its newline, so the rest is torn."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _visible_entries(path: Path) -> list[str]:
    """Names in ``path`` that matter: not hidden ones, nor the empty folders of a start that was killed."""
    return sorted(
        entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(".")
        and entry.name != "lost+found"
        and not (entry.is_dir() and not any(entry.iterdir()))
    )


def _check_same_run(config_path: Path, resolved: Mapping[str, Any]) -> None:
    """Raises ``UserError`` unless ``config_path`` describes the run of ``resolved``."""
    try:
        stored = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{config_path} cannot be read as YAML; choose another folder with run_dir=DIR"
        ) from error
    difference = _first_difference(stored, resolved, "")
    if difference is not None:
        key, there, here = difference
        raise UserError(
            f"{config_path.parent} holds another run: {key or 'config'} is {there} there and {here} here; "
            f"choose another folder with run_dir=DIR, or repeat that run's settings to continue it"
        )


def _first_difference(stored: Any, resolved: Any, key: str) -> tuple[str, str, str] | None:
    """The first dotted key that differs, with both values as text; None if the run is the same."""
    if key in CHANGEABLE or stored == resolved:
        return None
    if isinstance(stored, list) and isinstance(resolved, list):
        stored, resolved = dict(enumerate(stored)), dict(enumerate(resolved))
    if not (isinstance(stored, dict) and isinstance(resolved, dict)):
        return key, _brief(stored), _brief(resolved)
    for name in [*resolved, *(name for name in stored if name not in resolved)]:
        inner = f"{key}.{name}" if key else str(name)
        difference = _first_difference(stored.get(name), resolved.get(name), inner)
        if difference is not None:
            return difference
    return None


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """``value`` with NumPy scalars as Python's, paths as text, and null for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            return int(value)
        return float(value) if math.isfinite(value) else None
    return value
