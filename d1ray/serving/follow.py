"""Following a training run: its newest checkpoint is served as soon as it is complete."""

import hashlib
import json
import logging
import threading
from pathlib import Path

import yaml
from upath import UPath

from d1ray.config.errors import ModelError
from d1ray.evaluation.config import model_folder
from d1ray.run import checkpoint
from d1ray.serving.config import ServeConfig
from d1ray.serving.engine import Engine
from d1ray.serving.weights import Weights, load_weights

logger = logging.getLogger(__name__)


def first_weights(config: ServeConfig) -> Weights:
    """What a server begins with: the model that is named, or of a followed run the newest there is.

    Raises:
        ModelError: there is no such model, or the run has none yet.
    """
    if config.follow:
        try:
            newest = newest_weights(config)
        except OSError as error:  # removed while it was read
            raise ModelError(f"the newest checkpoint of {config.model} cannot be read: {error}") from error
        if newest is not None:
            return newest
    return load_weights(model_folder(config.model), config.precision, config.exact)


def newest_weights(config: ServeConfig, current: str | None = None) -> Weights | None:
    """The newest checkpoint of the run ``config.model``; None if there is none, or it is ``current``."""
    root = checkpoints_of(config.model)
    # Comparing names, manifests and sizes is cheap; hashes are looked at only of a new one.
    candidates = checkpoint.resumable(checkpoint.survey(root))
    if not candidates or version_of(candidates[0].folder) == current:
        return None
    whole = checkpoint.latest(root)
    if whole is None or version_of(whole) == current:
        return None
    version = version_of(whole)
    with checkpoint.fetched(whole) as folder:
        assert folder is not None
        return load_weights(folder / "model", config.precision, config.exact, version)


def checkpoints_of(run: Path) -> UPath:
    """Where the RL checkpoints of a run lie, as its ``config.yaml`` says."""
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text()) if file.is_file() else None
    elsewhere = values.get("checkpoint_path") if isinstance(values, dict) else None
    return UPath(elsewhere or run / "checkpoints") / "rl"


def version_of(folder: UPath) -> str:
    """The step and a hash of the model's files: a step that was done again has other weights."""
    files = checkpoint.manifest_of(folder) or {}
    sums = {name: entry["sha256"] for name, entry in files.items() if name.startswith("model/")}
    digest = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    return f"step-{checkpoint.step_of(folder)}-{digest[:8]}"


class Follower:
    """A thread that gives an engine the newest checkpoint every ``follow_every_s`` seconds.

    What cannot be read leaves the engine as it is, and is tried again: a checkpoint may be removed meanwhile,
    or not fit into memory beside the model that is served.
    """

    def __init__(self, config: ServeConfig, engine: Engine):
        self.config, self.engine = config, engine
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, name="d1ray follower", daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.ending.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.ending.wait(self.config.follow_every_s):
            try:
                weights = newest_weights(self.config, self.engine.weights.version)
            except Exception:
                logger.exception("the newest checkpoint of %s cannot be loaded", self.config.model)
                continue
            if weights is not None:
                logger.info("serving %s of %s", weights.version, self.config.model)
                self.engine.swap(weights)
