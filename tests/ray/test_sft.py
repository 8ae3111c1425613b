"""SFT through Ray Train: sharded, validated, stopped early, and with a worker that is killed."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import torch
from safetensors.torch import load_file

from d1ray.config.recipe import load_config
from d1ray.config.run import Config
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
from d1ray.models.load import load_model
from d1ray.models.lora import add_lora, unadapted
from d1ray.models.tokenizer import load_tokenizer
from d1ray.programs.stages import supervised_stages
from d1ray.rl.optimizer import adamw
from d1ray.run.folder import RunFolder
from d1ray.run.progress import Progress
from d1ray.sft.demonstrations import Demonstrations, Phase
from d1ray.sft.masked_training import training_step, validation_loss

Sft: TypeAlias = Callable[..., Config]


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


def in_one_process(
    config: Config, start: Path, steps: int
) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
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
    for step in range(steps):
        training_step(loss, model, optimizer, demonstrations, step)
        weights.append({name: tensor.clone() for name, tensor in unadapted(model).state_dict().items()})
        losses.append(validation_loss(loss, model, held_out, config.sft))
    return weights, losses


def test_sharded_workers_stop_early_and_give_the_best_model_of_one_process(
    sft: Sft, start: Path, tmp_path: Path
) -> None:
    settings = (
        "steps: 30, validate_every: 1, validation_examples: 12, patience: 2, sharding: fsdp, "
        "eos_padding: 4, packing: true, lora: {r: 4, alpha: 8}"
    )
    one = ["sft.examples=2", "sft.optimizer.learning_rate=0.003"]
    config = sft(tmp_path / "run", settings, "cluster.sft_workers=2", *one)
    found = supervised(config)
    losses = [row["validation_loss"] for row in logged(config)]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 30  # two more that are no better
    weights, expected = in_one_process(config, start, len(losses))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert found.keys() == weights[best].keys()
    for name, tensor in weights[best].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
    assert [path.name for path in (tmp_path / "run" / "models").iterdir()] == ["sft"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_worker_that_dies_or_hangs_leaves_no_trace_in_the_weights(
    sft: Sft, start: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = "steps: 60, checkpoint_every: 2, validate_every: 4, validation_examples: 8"
    deadline_s = 40 if number == signal.SIGSTOP else 120  # three have to do for a start
    config = sft(tmp_path / "run", settings, "cluster.sft_workers=1", f"cluster.deadline_s={deadline_s}")
    kills: list[int] = []
    over = threading.Event()

    def kill_the_worker() -> None:
        checkpoints = tmp_path / "run" / "checkpoints" / "sft"
        while not kills and not over.wait(0.01):
            workers = [p for p in psutil.Process().children(recursive=True) if is_train_worker(p)]
            if list(checkpoints.glob("step-*")) and workers:
                workers[0].send_signal(number)
                kills.append(workers[0].pid)

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    try:
        found = supervised(config)
    finally:
        over.set()
        killer.join(timeout=60)
    assert kills
    assert [row["step"] for row in logged(config)] == list(range(1, 61))
    weights, losses = in_one_process(config, start, 60)
    validated = {row["step"]: row["validation_loss"] for row in logged(config) if "validation_loss" in row}
    assert validated == {step: losses[step - 1] for step in range(4, 61, 4)}
    best = min(validated, key=lambda step: validated[step])
    assert all(torch.equal(found[name], tensor) for name, tensor in weights[best - 1].items())
