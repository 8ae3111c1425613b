"""Runs of seconds: a small model that has begun to learn, and the settings to reinforce it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LONGEST = 24  # steps of the run that others are compared with
SMALL = [
    "sft=null",
    "rl.prompts_per_step=4",
    "rl.group_size=4",
    "rl.mu=2",
    "rl.algorithm.beta=0.04",  # with a reference
    "rl.optimizer.learning_rate=1e-4",
    "rl.optimizer.max_grad_norm=0.2",
    "rl.optimizer.schedule=constant",  # so that a long run begins like a short one
    "rl.validate_every=1",
    "rl.checkpoint_every=1",
    "rl.keep_checkpoints=10",
    "evaluation.examples=16",
    "evaluation.validation_examples=8",
    "cluster.generator_cpus=0.25",
    "cluster.sft_threads=1",
    "cluster.sft_worker_cpus=0.5",
    "cluster.deadline_s=120",
    "cluster.dashboard=false",
]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the answer format but not the puzzles: its rewards vary within a group."""
    from d1ray.config.recipe import load_config
    from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
    from d1ray.models.load import load_model
    from d1ray.models.make import make_model
    from d1ray.models.save import save_model
    from d1ray.models.tokenizer import load_tokenizer
    from d1ray.rl.optimizer import adamw
    from d1ray.sft.demonstrations import Demonstrations, Phase
    from d1ray.sft.masked_training import training_step

    folder = tmp_path_factory.mktemp("model") / "start"
    config = load_config("sudoku-tiny", ["model.make.d_model=64", "model.make.n_layers=2"])
    assert config.model.make is not None
    make_model(config.model.make, 0, folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    phase = Phase(
        "pretrain", 0, config.model.make.pretraining[0].model_copy(update={"steps": 80, "batch_size": 32})
    )
    loss, optimizer = MaskedDiffusionLoss(model), adamw(model, phase.config.optimizer)
    demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
    for step in range(phase.config.steps):
        training_step(loss, model, optimizer, demonstrations, step)
    save_model(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def small_run(start: Path) -> Callable[..., list[str]]:
    """Overrides of `sudoku-tiny` for a run of seconds from ``start``: ``small_run(run_dir, *overrides)``."""

    def overrides(run_dir: Path, *more: str) -> list[str]:
        return [f"model.path={start}", "model.make=null", f"run_dir={run_dir}", *SMALL, *more]

    return overrides


@pytest.fixture(scope="session")
def config_of(small_run: Callable[..., list[str]]) -> Callable[..., Any]:
    """``config_of(run_dir, *overrides)``: the config of a small run."""
    from d1ray.config.recipe import load_config

    return lambda run_dir, *overrides: load_config("sudoku-tiny", small_run(run_dir, *overrides))


def trained(config: Any, interrupt: Callable[[], bool] = lambda: False, progress: Any = None) -> Any:
    """The weights of the newest checkpoint after the run's diffu-GRPO.

    Args:
        progress: who reports it, a `Progress`.
    """
    from d1ray.models.tokenizer import load_tokenizer
    from d1ray.programs.evaluate import held_out_prompts
    from d1ray.programs.train import reinforce
    from d1ray.programs.training import job_of
    from d1ray.run import checkpoint, checkpoint_tensors
    from d1ray.run.folder import RunFolder
    from d1ray.run.progress import Progress
    from d1ray.tasks.source import open_data

    with RunFolder.open(config.run_dir, config) as folder, progress or Progress() as reports:
        data = open_data(config.task, None, config.seed)
        validation = held_out_prompts(
            load_tokenizer(config.model.path),
            data.examples("validation", config.evaluation.validation_examples),
            config.data.max_prompt_length,
        )
        start = config.model.path
        with job_of(config, start, data, validation, folder, reports, interrupt) as job:
            reinforce(job)
        newest = checkpoint.latest(config.checkpoint_root("rl"))
        assert newest is not None
        return dict(checkpoint_tensors.read_model(newest))


@pytest.fixture(scope="session")
def reinforced() -> Callable[..., Any]:
    """``reinforced(config, interrupt)``: the weights of the newest checkpoint after the run's diffu-GRPO."""
    return trained


@pytest.fixture(scope="session")
def undisturbed(
    ray_cluster: None,
    config_of: Callable[..., Any],
    reinforced: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Any]:
    """``undisturbed(step)``: the weights after a step of a run to which nothing happens, up to ``LONGEST``.

    It has one generator and one learner rank; whatever happens to a run like it must not change them.
    """
    from d1ray.run import checkpoint, checkpoint_tensors

    more = [f"rl.steps={LONGEST}", f"rl.keep_checkpoints={LONGEST}", f"rl.validate_every={LONGEST}"]
    config = config_of(tmp_path_factory.mktemp("undisturbed") / "run", *more, "cluster.generators=1")
    reinforced(config)
    root = config.checkpoint_root("rl")
    return lambda step: dict(checkpoint_tensors.read_model(checkpoint.folder_of(root, step)))


@pytest.fixture(scope="session")
def serving_clients() -> ModuleType:
    """The module beside this one: clients that put a server under load."""
    import serving_clients

    return serving_clients
