"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, as ``d1ray.run.metrics`` names it.

A metric ``reward`` of stage ``rl`` is ``rl/reward`` there, over the stage's steps (``reward/format`` is
``rl/reward.format`` in MLflow). A run that is continued
goes on in the same tracked run, whose id is kept in the run folder.
"""

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from d1ray.config.cluster import TrackingConfig
from d1ray.config.errors import ConfigError
from d1ray.config.run import Config
from d1ray.run.atomic import write_atomically
from d1ray.run.sender import Sender

CLOSE_S = 60  # for a server to take the rest of a run
MLFLOW_VALUE, MLFLOW_PARAMS = 6000, 100  # characters of a parameter, and parameters a call, that MLflow takes


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, row: Mapping[str, Any], at: float) -> None:
        """Takes a metrics row, logged at a Unix time."""

    def close(self) -> None:
        """Ends the tracked run."""


class WandB:
    """A run of Weights & Biases; its environment variables say where and whose (``WANDB_MODE=offline``)."""

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]):
        import wandb

        self.run = wandb.init(
            project=project,
            name=run_dir.name,
            id=_run_id(run_dir, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=run_dir,
            config=dict(config),
        )

    def log(self, row: Mapping[str, Any], at: float) -> None:
        stage = row["stage"]
        self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log(numbers_of(row) | {f"{stage}/step": row["step"]})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment ``d1ray`` on an MLflow tracking server."""

    def __init__(self, uri: str, run_dir: Path, config: Mapping[str, Any]):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name("d1ray")
        experiment = found.experiment_id if found else self.client.create_experiment("d1ray")

        def create() -> str:
            created: str = self.client.create_run(experiment, run_name=run_dir.name).info.run_id
            params = [Param(key, str(value)[:MLFLOW_VALUE]) for key, value in _flat(config)]
            for first in range(0, len(params), MLFLOW_PARAMS):
                self.client.log_batch(created, params=params[first : first + MLFLOW_PARAMS])
            return created

        self.id = _run_id(run_dir, "mlflow", create)

    def log(self, row: Mapping[str, Any], at: float) -> None:
        from mlflow.entities import Metric

        metrics = [
            # A store of files has `rl/reward` as a file: it cannot be a folder, too.
            Metric(key.replace("reward/", "reward."), value, int(1000 * at), int(row["step"]))
            for key, value in numbers_of(row).items()
        ]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.id)


class Trackers:
    """The trackers that a run asks for, each fed by a thread of its own: no run waits or ends for one.

    Raises:
        ConfigError: one cannot be had at the start.
    """

    def __init__(self, config: Config):
        assert config.run_dir is not None
        settings = config.model_dump(mode="json", exclude={"tracking", "run_dir", "about"})
        self.senders: list[Sender] = []
        kinds: dict[str, type[WandB | MLflow]] = {"wandb": WandB, "mlflow": MLflow}
        for name, kind in kinds.items():
            where = getattr(config.tracking, name)
            if where is None:
                continue
            try:
                self.senders.append(Sender(kind.__name__, kind(where, config.run_dir, settings)))
            except Exception as error:  # whatever its package makes of a wrong address or a missing key
                raise ConfigError(f"tracking.{name}={where} cannot be used: {error}") from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands a metrics row to all of them, and returns at once."""
        for sender in self.senders:
            sender.put(row)

    def close(self) -> None:
        """Sends what waits and ends the tracked runs, each within ``CLOSE_S``."""
        for sender in self.senders:
            sender.end()
        for sender in self.senders:
            sender.join(CLOSE_S)


def check_trackers(tracking: TrackingConfig) -> None:
    """Raises ``ConfigError`` if a tracker is asked for whose package is not installed."""
    for name, asked in (("wandb", tracking.wandb), ("mlflow", tracking.mlflow)):
        if asked is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracking.{name} needs the package {name}; pip install 'd1ray[{name}]'")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers by tracked name."""
    return {
        f"{row['stage']}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, Real)
    }


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _run_id(run_dir: Path, tracker: str, create: Callable[[], str]) -> str:
    """The id that the run folder holds for a tracker; a new one is kept there."""
    file = run_dir / "trackers.json"
    ids: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if tracker not in ids:
        ids[tracker] = create()
        write_atomically(file, json.dumps(ids))
    return ids[tracker]
