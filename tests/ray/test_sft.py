"""SFT through Ray Train: sharded, validated, stopped early, and with a worker that dies."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import torch
from safetensors.torch import load_file

from d1ray.config import Config
from d1ray.demonstrations import Demonstrations, Phase
from d1ray.diffusion import MaskedDiffusionLoss
from d1ray.errors import DataError
from d1ray.masked_training import training_step, validation_loss
from d1ray.models import load_model, load_tokenizer
from d1ray.models.lora import add_lora, unadapted
from d1ray.progress import Progress
from d1ray.recipe import load_config
from d1ray.rl.optimizer import adamw
from d1ray.run_folder import RunFolder
from d1ray.stages import supervised_stages

Sft: TypeAlias = Callable[..., Config]
LORA = "lora: {r: 4, alpha: 8}"


@pytest.fixture
def sft(ray_cluster: None, small_run: Callable[..., list[str]]) -> Sft:
    """``sft(run_dir, settings of sft, *overrides)``."""

    def config(run_dir: Path, settings: str, *overrides: str) -> Config:
        section = f"sft={{batch_size: 8, examples: 6, optimizer: {{learning_rate: 0.001}}, {settings}}}"
        return load_config("sudoku-tiny", small_run(run_dir, section, *overrides))

    return config


def supervised(config: Config) -> dict[str, torch.Tensor]:
    """The weights after SFT."""
    assert config.run_dir is not None
    with RunFolder.open(config.run_dir, config) as run, Progress() as progress:
        stages = supervised_stages(config, run, progress, lambda: False)
    return load_file(stages["sft"] / "model.safetensors")


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def logged(config: Config) -> list[dict[str, Any]]:
    assert config.run_dir is not None
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def in_one_process(config: Config, start: Path) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """The merged weights and the validation loss after every step."""
    assert config.sft is not None
    model, tokenizer = load_model(start), load_tokenizer(start)
    if config.sft.lora:
        add_lora(model, config.sft.lora, config.seed)
    optimizer, loss = adamw(model, config.sft.optimizer), MaskedDiffusionLoss(model)
    demonstrations = Demonstrations(
        config, Phase("sft", 1000, config.sft), tokenizer, model.config.eos_token_id
    )
    held_out = demonstrations.validation(config.sft.validation_examples)
    weights, losses = [], []
    for step in range(config.sft.steps):
        training_step(loss, model, optimizer, demonstrations, step)
        weights.append({name: tensor.clone() for name, tensor in unadapted(model).state_dict().items()})
        losses.append(validation_loss(loss, model, held_out, config.sft))
    return weights, losses


def test_sharded_workers_give_the_validated_model_of_one_process(
    sft: Sft, start: Path, tmp_path: Path
) -> None:
    settings = f"steps: 4, validate_every: 2, validation_examples: 12, sharding: fsdp, packing: true, {LORA}"
    config = sft(tmp_path / "run", settings, "cluster.sft_workers=2")
    found = supervised(config)
    weights, losses = in_one_process(config, start)
    validated = {row["step"]: row["validation_loss"] for row in logged(config) if "validation_loss" in row}
    assert validated == pytest.approx({2: losses[1], 4: losses[3]}, rel=1e-5)
    best = weights[1 if losses[1] < losses[3] else 3]
    assert found.keys() == best.keys()
    for name, tensor in best.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(
    sft: Sft, start: Path, tmp_path: Path
) -> None:
    settings = "steps: 30, validate_every: 1, validation_examples: 12, patience: 2"
    one = ["sft.optimizer.learning_rate=0.003", "sft.examples=1", "cluster.sft_workers=1"]
    config = sft(tmp_path / "run", settings, *one)
    found = supervised(config)
    losses = [row["validation_loss"] for row in logged(config)]
    best = losses.index(min(losses))
    assert best > 0 and len(losses) == best + 3 < 30  # two more that are no better
    weights, _ = in_one_process(config, start)
    for name, tensor in weights[best].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    assert [path.name for path in (tmp_path / "run" / "models").iterdir()] == ["sft"]


def test_a_killed_worker_leaves_no_trace_in_the_weights(sft: Sft, tmp_path: Path) -> None:
    settings = "steps: 40, checkpoint_every: 2, validate_every: 4, validation_examples: 8"
    undisturbed = supervised(sft(tmp_path / "whole", settings, "cluster.sft_workers=2"))
    config = sft(tmp_path / "killed", settings, "cluster.sft_workers=2")
    kills: list[int] = []
    over = threading.Event()

    def kill_a_worker() -> None:
        checkpoints = tmp_path / "killed" / "checkpoints" / "sft"
        while not kills and not over.wait(0.01):
            workers = [p for p in psutil.Process().children(recursive=True) if is_train_worker(p)]
            if list(checkpoints.glob("step-*")) and workers:
                workers[0].kill()
                kills.append(workers[0].pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    try:
        weights = supervised(config)
    finally:
        over.set()
        killer.join(timeout=60)
    assert kills
    assert [row["step"] for row in logged(config)] == list(range(1, 41))
    assert all(torch.equal(weights[name], tensor) for name, tensor in undisturbed.items())


def test_a_demonstration_that_is_too_long_ends_the_run_with_its_name(sft: Sft, tmp_path: Path) -> None:
    config = sft(tmp_path / "run", "steps: 2", "data.max_completion_length=10")
    with pytest.raises(DataError, match=r"sudoku example .*data.max_completion_length=10.*overlong=truncate"):
        supervised(config)
