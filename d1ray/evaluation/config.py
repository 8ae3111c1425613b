"""Which model `d1ray evaluate` means, and how it is prompted and sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from d1ray.config.errors import ConfigError, ModelError
from d1ray.config.evaluation import EvaluationSamplerConfig
from d1ray.config.recipe import apply_overrides, validated
from d1ray.config.run import Config
from d1ray.config.settings import local_or_hub
from d1ray.models.hub import is_adapter_folder
from d1ray.run import checkpoint


def model_folder(path: Path) -> Path:
    """The model folder behind a model folder, a checkpoint or a run folder; a hub id stays as it is.

    Raises:
        ModelError: it is none of them, or a checkpoint's model is not as it was written.
    """
    if local_or_hub(path) == path and not path.is_absolute():
        return path
    best = checkpoint.best(path / "checkpoints" / "rl")
    candidates = [path, path / "model", path / "models" / "rl"]
    candidates += [Path(str(best), "model")] if best else []
    candidates += [path / "models" / "sft"]
    found = next((c for c in candidates if (c / "config.json").is_file() or is_adapter_folder(c)), None)
    if found is None:
        raise ModelError(
            f"{path} is no model folder, checkpoint, run folder or hub id (org/name): no config.json in it"
        )
    within = found.absolute().parent
    if checkpoint.is_checkpoint(within) and not checkpoint.is_complete(within, "model/"):
        raise ModelError(f"{within} does not match its manifest: the checkpoint is damaged; use another one")
    return found.absolute()


def evaluation_configs(
    model: Path, tasks: Sequence[str], overrides: Sequence[str], own_data: bool
) -> tuple[Path, list[Config]]:
    """The model's folder, and for each task how it is evaluated.

    Args:
        own_data: whether the examples come from data that is named beside the settings.

    Raises:
        ConfigError, ModelError
    """
    if own_data and len(tasks) > 1:
        raise ConfigError("--data is one task's; evaluate the tasks one by one into the same --output")
    folder = model_folder(model)
    return folder, [evaluation_config(model.absolute(), folder, task, overrides, own_data) for task in tasks]


def evaluation_config(
    model: Path, folder: Path, task: str, overrides: Sequence[str], own_data: bool = False
) -> Config:
    """The config of the run that holds ``path``, or the defaults; ``task`` and ``overrides`` on top."""
    values = next((run for parent in (model, *model.parents) if (run := _run_config(parent))), {})
    other = values.get("task", {}).get("name") != task
    if other:
        values["task"] = {"name": task}
    if other or own_data:  # how the run's data is read says nothing about other data
        values["data"] = {**values.get("data", {}), "path": None, "subset": None, "columns": {}}
    precision = values.get("model", {}).get("precision", "fp32")
    values |= {"model": {"path": str(folder), "precision": precision}, "sft": None, "rl": None}
    return validated(apply_overrides(values, overrides))


def with_length(config: Config, length: int) -> Config:
    """d1's protocol for a generation length: half as many steps, in blocks of 32.

    Raises:
        ConfigError: the length has no such schedule.
    """
    sampling = config.evaluation.sampling.model_dump() | {
        "gen_length": length,
        "steps": length // 2,
        "block_length": min(32, length),
    }
    try:
        chosen = EvaluationSamplerConfig(**sampling)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--length {length}: {said}") from error
    evaluation = config.evaluation.model_copy(update={"sampling": chosen})
    return config.model_copy(update={"evaluation": evaluation})


def score_config(task: str, overrides: Sequence[str]) -> Config:
    """The settings of `d1ray score`: ``task`` and ``scoring``; a model plays no part in it.

    Raises:
        ConfigError: an override sets anything else.
    """
    return _part_of_config("score", ("task", "scoring"), {"task": {"name": task}}, overrides)


def harness_config(overrides: Sequence[str]) -> Config:
    """The settings of `d1ray harness`: ``evaluation`` and ``seed``.

    Raises:
        ConfigError: an override sets anything else.
    """
    return _part_of_config("harness", ("evaluation", "seed"), {"task": {"name": "dialogue"}}, overrides)


def _part_of_config(
    program: str, parts: tuple[str, ...], values: dict[str, Any], overrides: Sequence[str]
) -> Config:
    for override in overrides:
        if override.partition("=")[0].split(".")[0] not in parts:
            raise ConfigError(f"{override}: d1ray {program} takes settings of {' and '.join(parts)} only")
    return validated(apply_overrides(values | {"model": {"path": "none"}}, overrides))


def _run_config(folder: Path) -> dict[str, Any]:
    """The settings of the run in ``folder``, {} if it holds none."""
    file = folder / "config.yaml"
    values = yaml.safe_load(file.read_text()) if file.is_file() else None
    return values if isinstance(values, dict) and {"task", "evaluation"} <= values.keys() else {}
