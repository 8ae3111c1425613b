"""`d1ray sft`: masked-diffusion training on demonstrations with Ray Train's TorchTrainer.

Pre-training phases and SFT are the same loop (d1, Section 3.1; FACTS of its public code): the
prompt is never noised, completions are padded with EOS, and loss = sum CE / t' over masked tokens
divided by the number of completion tokens. The phases of one call run in one gang of workers.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from transformers import PreTrainedTokenizerBase

from actors.bulletin import Bulletin
from d1ray import checkpoint, rng
from d1ray.config import Config, MaskedTrainingConfig
from d1ray.diffusion import MaskedDiffusionLoss, noised_inputs
from d1ray.interrupt import Interrupt, Interrupted
from d1ray.models import LLaDA, encode_completion, encode_prompt, load_model, load_tokenizer, save_model
from d1ray.progress import Progress, Stage
from d1ray.rl.optimizer import adamw, learning_rate, optimizer_step
from d1ray.run_folder import RunFolder
from d1ray.tasks.source import Data, open_data


@dataclass(frozen=True)
class Phase:
    """One stretch of masked-diffusion training.

    ``number`` keys its randomness; ``save_to`` is the model folder written at its end, if any.
    """

    stage: str
    number: int
    config: MaskedTrainingConfig
    save_to: Path | None = None


def train_phases(
    config: Config,
    phases: Sequence[Phase],
    start: Path,
    run: RunFolder,
    progress: Progress,
    interrupt: Interrupt,
) -> None:
    """Trains ``phases`` in turn from the model folder ``start``.

    Raises:
        Interrupted: a signal came; a checkpoint was written and the same call continues from it.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    c = config.cluster
    bulletin = ray.remote(num_cpus=0)(Bulletin).remote()
    resources = {"CPU": c.sft_worker_cpus} | ({"GPU": c.sft_worker_gpus} if c.sft_worker_gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "phases": list(phases),
            "start": start,
            "checkpoints": run.checkpoints / "sft",
            "bulletin": bulletin,
        },
        torch_config=TorchConfig(
            backend="nccl" if c.sft_worker_gpus else "gloo", timeout_s=int(c.deadline_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=c.sft_workers, use_gpu=c.sft_worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(name="sft", storage_path=str(run.path / "ray_train")),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    fitting = threading.Thread(target=fit, daemon=True)  # outside the main thread fit() leaves SIGINT to us
    fitting.start()
    follow(phases, bulletin, fitting, run, progress, interrupt, c.deadline_s)
    ray.kill(bulletin)
    if failures:
        raise failures[0]
    if interrupt():
        raise Interrupted


def follow(
    phases: Sequence[Phase],
    bulletin: ActorHandle,
    fitting: threading.Thread,
    run: RunFolder,
    progress: Progress,
    interrupt: Interrupt,
    deadline_s: float,
) -> None:
    """Shows and logs the workers' rows until ``fitting`` ends; passes an interrupt on to them.

    Raises:
        TimeoutError: no row came for ``deadline_s``.
    """
    by_number = {phase.number: phase for phase in phases}
    last_row = time.monotonic()
    with ExitStack() as stack:
        shown: int = -1
        stage: Stage | None = None
        while True:
            running = fitting.is_alive()
            for row in ray.get(bulletin.read.remote(), timeout=deadline_s):
                last_row = time.monotonic()
                phase = by_number[row.pop("phase")]
                if phase.number != shown:
                    stack.close()
                    shown = phase.number
                    stage = stack.enter_context(
                        progress.stage(phase.stage, phase.config.steps, row["step"] - 1)
                    )
                run.log(row)
                assert stage is not None
                stage.update(row["step"], row)
            if not running:
                return
            if interrupt():
                bulletin.stop.remote()
            if time.monotonic() - last_row > deadline_s:
                raise TimeoutError(
                    f"no training step of {phases[0].stage} for {deadline_s:g} s (cluster.deadline_s); "
                    f"are {len(phases)} phase(s) waiting for resources?"
                )
            fitting.join(0.3)


def train_worker(settings: dict[str, Any]) -> None:
    """What each TorchTrainer worker runs: the phases, data-parallel over its peers."""
    from ray.train import get_context, report
    from ray.train.torch import prepare_model

    config: Config = settings["config"]
    torch.set_num_threads(config.cluster.sft_threads)
    rank = get_context().get_world_rank()
    tokenizer = load_tokenizer(settings["start"])
    data = open_data(config.task, config.data.path, config.seed)
    resume = checkpoint.latest(settings["checkpoints"])
    position = checkpoint.load_state(resume) if resume else {"phase": -1, "step": 0}
    model = load_model(resume / "model" if resume else settings["start"])
    for phase in settings["phases"]:
        if phase.number < position["phase"]:
            continue
        resumed = phase.number == position["phase"]
        first = position["step"] if resumed else 0
        loss_module = prepare_model(MaskedDiffusionLoss(model))
        optimizer = adamw(model, phase.config.optimizer)
        if resume and resumed:
            checkpoint.restore_optimizer(optimizer, checkpoint.load_tensors(resume, "optimizer"))
        for step in range(first, phase.config.steps):
            row = training_step(loss_module, model, optimizer, tokenizer, data, config, phase, step)
            if stop_wished(settings["bulletin"], row, rank, config.cluster.deadline_s):
                if rank == 0:
                    tensors = {"optimizer": checkpoint.optimizer_tensors(optimizer)}
                    state = {"phase": phase.number, "step": step + 1}
                    checkpoint.save(
                        settings["checkpoints"], step + 1, model, tokenizer, tensors, state, keep=1
                    )
                return
        if rank == 0 and phase.save_to is not None:
            save_model(model, phase.save_to, tokenizer)
    report({"phases": len(settings["phases"])})


def training_step(
    loss_module: torch.nn.Module,
    model: LLaDA,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    config: Config,
    phase: Phase,
    step: int,
) -> dict[str, Any]:
    """One optimiser step on this worker's rows of the batch; the gradient is the whole batch's."""
    started = time.perf_counter()
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    size, length = phase.config.batch_size, config.data.max_completion_length
    rows = range(rank, size, world)
    pairs = [
        demonstration(
            data,
            tokenizer,
            config,
            phase,
            demonstration_index(config.seed, phase, step * size + row),
            model.config.eos_token_id,
        )
        for row in rows
    ]
    inputs = noised_inputs(
        model,
        [prompt for prompt, _ in pairs],
        [completion for _, completion in pairs],
        phase.config.eps,
        config.seed,
        phase.number,
        step,
        rows=rows,
    )
    loss = loss_module(*inputs) / (size * length)
    (loss * world).backward()  # DDP averages over the workers
    optimizer_config = phase.config.optimizer
    rate = learning_rate(step, phase.config.steps, optimizer_config)
    norm, _ = optimizer_step(model, optimizer, rate, optimizer_config)
    total = loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return {
        "stage": phase.stage,
        "phase": phase.number,
        "step": step + 1,
        "loss": float(total),
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens_per_s": size * length / (time.perf_counter() - started),
    }


def demonstration_index(seed: int, phase: Phase, position: int) -> int:
    """The demonstration at ``position`` of a phase: fresh ones without limit, or shuffled epochs of N."""
    if phase.config.examples is None:
        return position
    epoch, offset = divmod(position, phase.config.examples)
    order = rng.generator(seed, "demonstration order", phase.number, epoch).permutation(phase.config.examples)
    return int(order[offset])


def demonstration(
    data: Data, tokenizer: PreTrainedTokenizerBase, config: Config, phase: Phase, index: int, eos_id: int
) -> tuple[list[int], list[int]]:
    """Token ids of demonstration ``index`` of a phase: the prompt, and the EOS-padded completion."""
    example = data.train(index, stream=f"{phase.stage}")
    draw = rng.generator(config.seed, "demonstration", phase.number, index)
    text = config.task.demonstration(example, phase.config.demonstrations, draw)
    return (
        encode_prompt(tokenizer, example.prompt, config.data.max_prompt_length),
        encode_completion(tokenizer, text, config.data.max_completion_length, eos_id),
    )


def stop_wished(bulletin: ActorHandle, row: dict[str, Any], rank: int, deadline_s: float) -> bool:
    """Posts rank 0's row and tells every rank alike whether to stop."""
    wished = torch.zeros(1)
    if rank == 0:
        wished += ray.get(bulletin.post.remote(row), timeout=deadline_s)
    if dist.is_initialized():
        dist.broadcast(wished, src=0)
    return bool(wished.item())
