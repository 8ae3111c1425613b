"""One step of masked-diffusion training, and the validation loss, on this worker's share.

d1, Section 3.1: the prompt is never noised, completions are padded with EOS, and the loss is the sum
of CE / t' over masked tokens divided by the number of completion tokens. The workers share every batch, and
all noise is keyed by a demonstration's place in it: how it is divided changes nothing but rounding.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d1ray.config.sft import MaskedTrainingConfig
from d1ray.diffusion.bucketing import Row, layout
from d1ray.diffusion.masked_loss import Demonstration, noised_inputs
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import device_of, ranks
from d1ray.rl.optimizer import learning_rate, optimizer_step
from d1ray.sft.demonstrations import Demonstrations

VALIDATION_SEED = 0  # runs with different seeds are validated under the same noise


def training_step(
    loss_module: nn.Module,
    model: DiffusionLM,
    optimizer: torch.optim.Optimizer,
    demonstrations: Demonstrations,
    step: int,
) -> dict[str, Any]:
    """One optimiser step on this worker's share of the batch; the gradient is the whole batch's."""
    started = time.perf_counter()
    phase, seed = demonstrations.phase, demonstrations.config.seed
    config = phase.config
    world, rank = ranks()
    micro_batches, batch, tokens = share_of_batch(demonstrations, step, world, rank)
    total = torch.zeros((), device=device_of(model))
    for number, rows in enumerate(micro_batches):
        inputs = noised_inputs(model, rows or [[min(batch)]], batch, config.eps, seed, phase.number, step)
        if not rows:
            inputs[-2].fill_(False)  # nothing counts: the others only need this rank's part in their sums
        with accumulating(loss_module, last=number == len(micro_batches) - 1):
            with autocast(model, config):
                loss = loss_module(*inputs) / tokens
            (loss * world).backward()  # DDP and FSDP average over the workers
        total += loss.detach()
    rate = learning_rate(step, config.steps, config.optimizer)
    norm, _ = optimizer_step(model, optimizer, rate, config.optimizer)
    if world > 1:
        dist.all_reduce(total)
    return {
        "stage": phase.stage,
        "phase": phase.number,
        "step": step + 1,
        "loss": float(total),
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens_per_s": tokens / (time.perf_counter() - started),
    }


def share_of_batch(
    demonstrations: Demonstrations, step: int, world: int, rank: int
) -> tuple[list[list[Row]], dict[int, Demonstration], int]:
    """This worker's micro-batches of step ``step``, the demonstrations in them by their place in the batch,
    and how many completion tokens the whole batch has."""
    config, length = demonstrations.phase.config, demonstrations.limits.max_completion_length
    size = config.batch_size
    alike = config.eos_padding is None and config.micro_batch_tokens is None and not config.packing
    places = range(rank, size, world) if alike else range(size)
    batch = {place: demonstrations.at(step * size + place) for place in places}
    if alike:
        return [[[place] for place in places]], batch, size * length
    widths = [len(demonstration) for demonstration in batch.values()]
    rows = layout(widths, world, config.micro_batch_tokens, config.packing)[rank]
    return rows, batch, sum(len(demonstration.completion) for demonstration in batch.values())


@torch.no_grad()
def validation_loss(
    loss_module: nn.Module, model: DiffusionLM, held_out: list[Demonstration], config: MaskedTrainingConfig
) -> float:
    """The loss per completion token of held-out demonstrations, under noise that is always the same."""
    world, rank = ranks()
    widths = [len(demonstration) for demonstration in held_out]
    budget = config.micro_batch_tokens or max(widths) * math.ceil(config.batch_size / world)
    total = torch.zeros((), device=device_of(model))
    for rows in layout(widths, world, budget, config.packing)[rank]:
        inputs = noised_inputs(
            model,
            rows or [[0]],
            held_out,
            config.eps,
            VALIDATION_SEED,
            stream="sft validation",
            strata=len(held_out),
        )
        with autocast(model, config):
            loss = loss_module(*inputs)
        total += loss if rows else 0
    if world > 1:
        dist.all_reduce(total)
    return float(total) / sum(len(demonstration.completion) for demonstration in held_out)


def autocast(model: DiffusionLM, config: MaskedTrainingConfig) -> AbstractContextManager[Any]:
    """Matrix products in bf16, if that is the precision; norms, rotary angles and softmax stay in fp32."""
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=config.precision == "bf16")


def accumulating(loss_module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Lets DDP add up a step's gradients on each worker and average their sums once."""
    if isinstance(loss_module, DistributedDataParallel) and not last:
        return loss_module.no_sync()
    return nullcontext()
