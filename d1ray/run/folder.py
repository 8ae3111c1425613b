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
  .lease/               who owns the folder, or did
  summary.json  curves.png  report.html
```

A folder is a run once it has a ``config.yaml``, which appears by rename after the folders: a refused or
killed start leaves no half-written run behind. It has one owner at a time (``d1ray.run.lease``); no other
process writes there.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeAlias

import yaml
from upath import UPath

from d1ray.config.errors import DataError, UserError
from d1ray.config.run import Config
from d1ray.run.atomic import replacing, write_atomically
from d1ray.run.claims import Claim
from d1ray.run.lease import Lease, own
from d1ray.run.retention import superfluous
from d1ray.run.rows import each_line, end_with_whole_line, to_json
from d1ray.run.same_run import check_folder

Row: TypeAlias = Mapping[str, float | int | str]
ROLLOUTS = re.compile(r"step-(\d+)\.parquet")


class RunFolder:
    """Owns one run's directory and the files open in it. Use it as a context manager, one at a time.

    Example:
        with RunFolder.open(Path("runs/sudoku-tiny"), config) as run:
            run.log({"stage": "rl", "step": 1, "reward": 0.25})
    """

    def __init__(self, path: Path, leases: Sequence[Lease] = ()) -> None:
        """Takes over a prepared directory; use ``open``. Drops a last line that a crash tore."""
        self.path, self._leases = path, list(leases)
        self.config_path = path / "config.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.models = path / "models"
        self.rolled_back = path / "rolled-back"
        self.saved_path = path / "saved.json"
        self.dropped_path = path / "dropped.jsonl"
        self.summary_path = path / "summary.json"
        self.curves_path = path / "curves.png"
        end_with_whole_line(self.metrics_path)
        self._metrics: TextIO = self.metrics_path.open("a", encoding="utf-8")
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int] = {}
        self.listeners: list[Callable[[Row], None]] = []  # told of every row that is logged

    @classmethod
    def open(cls, path: Path, config: Config, note: Callable[[str], None] = lambda text: None) -> Self:
        """Creates the run folder ``path`` (parents too), or reopens it to continue its run.

        A reopened run must have the same configuration, except where it may change without becoming
        another run (``d1ray.run.same_run``). This process owns the folder, and the checkpoints' if that is
        elsewhere, until it is closed.

        Args:
            note: is told why it takes long.

        Raises:
            UserError: the folder holds another run or other files, or cannot be written.
            Held: another process owns it; nothing was changed.
        """
        resolved = config.model_dump(mode="json")
        leases: list[Lease] = []
        try:
            check_folder(path, resolved)
            leases.append(own(path, note))
            if config.checkpoint_path:
                leases.append(own(UPath(config.checkpoint_path), note))
            check_folder(path, resolved)  # as its last owner left it
            for folder in (path, *(path / name for name in ("rollouts", "checkpoints", "models"))):
                folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
            write_atomically(path / "config.yaml", text)
            return cls(path, leases)
        except BaseException as error:
            for lease in leases:
                lease.release()
            if not isinstance(error, OSError):
                raise
            raise UserError(
                f"cannot write the run folder {path}: {error.strerror or error}; "
                f"choose a folder you can write with run_dir=DIR"
            ) from error

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What allows to write here, for who does so elsewhere."""
        return tuple(lease.claim for lease in self._leases)

    def check(self) -> None:
        """Raises ``LeaseLost`` if another process owns the folder by now."""
        for lease in self._leases:
            lease.check()

    def fence(self) -> None:
        """Who was given ``claims`` before may write no more: a learner that is built anew has new ones."""
        for lease in self._leases:
            lease.advance()

    def log(self, row: Row) -> None:
        """Appends ``row`` to ``metrics.jsonl``, flushed, and its numbers to TensorBoard.

        ``row`` has ``stage`` (a name such as ``"rl"``) and ``step`` (an int). NaN and infinities are
        stored as null. TensorBoard gets no ``started_*``: they are Unix seconds. Raises ``ValueError`` if
        either key is missing.
        """
        if "stage" not in row or "step" not in row:
            raise ValueError(f"a metrics row needs 'stage' and 'step', got the keys {sorted(row)}")
        stage, step = str(row["stage"]), int(row["step"])
        self._check_own()
        self._metrics.write(to_json(row) + "\n")
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
        self._check_own()
        with self.dropped_path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every logged row in order. Raises ``DataError`` naming the line that is not a JSON object."""
        return (row for row, _ in each_line(self.metrics_path))

    def metrics(self) -> list[dict[str, Any]]:
        """All of ``rows``."""
        return list(self.rows())

    def truncate_metrics(self, stage: str, after_step: int) -> None:
        """Moves aside what ``stage`` logged after ``after_step``: the steps a resumed run takes again.

        ``after_step=-1`` moves the whole stage. TensorBoard hides the same steps.
        """
        self._check_own()
        self._set_rows_aside(
            self.metrics_path, lambda row: row.get("stage") == stage and row["step"] > after_step
        )
        self._metrics.close()
        self._metrics = self.metrics_path.open("a", encoding="utf-8")
        if stage in self._writers:
            self._writers.pop(stage).close()
        self._purge[stage] = after_step + 1

    def set_rollouts_aside(self, after_step: int) -> None:
        """Moves aside the rollouts of later steps, and what was dropped in them."""
        self._check_own()
        if self.dropped_path.exists():
            self._set_rows_aside(self.dropped_path, lambda row: row["step"] > after_step)
        for file in sorted(self.rollouts.iterdir()):
            step = ROLLOUTS.fullmatch(file.name)
            if step and int(step[1]) > after_step:
                self.rolled_back.mkdir(exist_ok=True)
                before = len(list(self.rolled_back.glob(f"{file.stem}*")))  # rolled back earlier
                file.replace(self.rolled_back / f"{file.stem}{f'-{before + 1}' * (before > 0)}.parquet")

    def thin_rollouts(self, newest: int, keep: int) -> None:
        """Removes the rollouts of steps that ``keep`` leaves out (``d1ray.run.retention``), up to ``newest``.

        It looks at the folder in every ``keep`` / 8th step only: so many more may be there.
        """
        if newest % max(1, keep // 8):
            return
        self._check_own()
        steps = {
            int(found[1]): file
            for file in self.rollouts.iterdir()
            if (found := ROLLOUTS.fullmatch(file.name))
        }
        for step in superfluous(steps, newest, keep):
            steps[step].unlink(missing_ok=True)

    def note_saved(self, stage: str, step: int) -> None:
        """Remembers that the stage's checkpoint of a step is written."""
        self._check_own()
        write_atomically(self.saved_path, to_json(self._saved() | {stage: step}) + "\n")

    def saved_step(self, stage: str) -> int:
        """The step of the newest checkpoint that was written, 0 if none was."""
        return int(self._saved().get(stage, 0))

    def write_summary(self, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> None:
        """Writes ``summary.json``: ``{"rows": [...], **extra}``, replaced as a whole."""
        self._check_own()
        write_atomically(self.summary_path, to_json({"rows": list(rows), **extra}, indent=2) + "\n")

    def close(self) -> None:
        """Closes the metrics file and the TensorBoard events, and gives the folder back; closing twice is
        harmless."""
        self._metrics.close()
        while self._writers:
            self._writers.popitem()[1].close()
        while self._leases:
            self._leases.pop().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_rows_aside(self, path: Path, later: Callable[[Mapping[str, Any]], bool]) -> None:
        """Moves the lines of ``later`` rows to a file of the same name in ``rolled-back``."""
        with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as kept:
            for row, line in each_line(path):
                if not later(row):
                    kept.write(line)
                    continue
                self.rolled_back.mkdir(exist_ok=True)
                with (self.rolled_back / path.name).open("a", encoding="utf-8") as aside:
                    aside.write(line)

    def _check_own(self) -> None:
        """As ``check``, of this folder alone."""
        if self._leases:
            self._leases[0].check()

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
