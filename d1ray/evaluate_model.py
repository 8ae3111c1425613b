"""`d1ray evaluate`: any model folder, checkpoint or run folder on a task's held-out examples."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from actors.placement import check_resources, connected
from actors.policy import policy_of_folder
from actors.pools import Pools
from d1ray import checkpoint, summary
from d1ray.config import Config, apply_overrides, validated
from d1ray.errors import ModelError
from d1ray.evaluate import evaluate, held_out_prompts
from d1ray.models import load_tokenizer
from d1ray.tasks.rows import load_examples
from d1ray.tasks.source import open_data


def evaluate_model(
    model: Path, task: str, data: Path | None, count: int | None, overrides: Sequence[str]
) -> summary.StageResult:
    """Evaluates ``model`` on ``task`` and returns the accuracies.

    A model inside a run folder is prompted and sampled as its run was; another one with the defaults,
    changed by ``overrides``.
    """
    folder = model_folder(model)
    config = config_for(model.absolute(), folder, task, overrides)
    if data is None:
        examples = open_data(config.task, config.data.path, config.seed).examples(
            "test", count or config.evaluation.examples
        )
    else:
        examples = load_examples(config.task, data)[:count]
    prompts = held_out_prompts(load_tokenizer(folder), examples, config.data.max_prompt_length)
    with connected(config.cluster):
        check_resources(config)
        pools = Pools(config, folder)
        try:
            verdicts = evaluate(pools, policy_of_folder(folder), prompts, config).verdicts
        finally:
            pools.close()
    return summary.summarise(model.name, task, verdicts)


def model_folder(path: Path) -> Path:
    """The model folder behind a model folder, a checkpoint or a run folder.

    Raises:
        ModelError: it is none of them.
    """
    newest = checkpoint.latest(path / "checkpoints" / "rl")
    candidates = [path, path / "model", path / "models" / "rl", path / "models" / "sft"]
    candidates += [newest / "model"] if newest else []
    found = next((c for c in candidates if (c / "config.json").is_file()), None)
    if found is None:
        raise ModelError(f"{path} is no model folder, checkpoint or run folder: no config.json in it")
    return found.absolute()


def config_for(path: Path, folder: Path, task: str, overrides: Sequence[str]) -> Config:
    """The config of the run that holds ``path``, or the defaults; ``task`` and ``overrides`` on top."""
    runs = [parent for parent in (path, *path.parents) if (parent / "config.yaml").is_file()]
    values = yaml.safe_load((runs[0] / "config.yaml").read_text()) if runs else {"task": {"name": task}}
    if values["task"]["name"] != task:
        values["task"] = {"name": task}
        values["data"] = {**values.get("data", {}), "path": None}
    values |= {"model": {"path": str(folder)}, "sft": None, "rl": None}
    return validated(apply_overrides(values, overrides))
