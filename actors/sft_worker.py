"""Supervised training as each TorchTrainer worker runs it: pre-training phases and SFT."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import nn

from d1ray.config.run import Config
from d1ray.config.sft import SFTConfig
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss
from d1ray.models.lora import add_lora, has_lora, unadapted
from d1ray.models.model import DiffusionLM
from d1ray.models.sharding import device_of, is_sharded, shard
from d1ray.models.tokenizer import load_tokenizer
from d1ray.rl.optimizer import adamw
from d1ray.run import checkpoint, checkpoint_tensors
from d1ray.run.claims import Claim, check
from d1ray.sft.demonstrations import Demonstrations, Phase
from d1ray.sft.masked_training import training_step, validation_loss
from d1ray.sft.model import frozen_dtype, resumable, save_checkpoint, save_merged, start_model


@dataclass
class Best:
    """The validation that chooses the model so far: its loss, its step, and how many came after it."""

    loss: float = math.inf
    step: int = 0
    later: int = 0


def train_worker(settings: dict[str, Any]) -> None:
    """What each TorchTrainer worker runs: the phases in turn, from the newest checkpoint within them.

    Ray Train calls it again after a worker's death. A phase with validation, or sharded, is the last one.
    """
    from ray.train import report

    with checkpoint.fetched(resumable(settings["checkpoints"], settings["phases"])) as resume:
        train_from(resume, settings)
    report({"phases": len(settings["phases"])})


def train_from(resume: Path | None, settings: dict[str, Any]) -> None:
    """The phases from a checkpoint, or from the start."""
    from ray.train import get_context
    from ray.train.torch import get_device, prepare_model

    config: Config = settings["config"]
    phases: list[Phase] = settings["phases"]
    claims: Sequence[Claim] = settings["claims"]
    torch.set_num_threads(config.cluster.sft_threads)
    keeps = get_context().get_world_rank() == 0  # this rank writes
    tokenizer = load_tokenizer(settings["start"])
    position: dict[str, Any] = checkpoint.load_state(resume) if resume else {"phase": -1, "step": 0}
    model, base = start_model(settings["start"], resume, frozen_dtype(phases[0].config))
    for phase in phases:
        if phase.number < position["phase"]:
            continue
        resumed = resume is not None and phase.number == position["phase"]
        own = phase.config if isinstance(phase.config, SFTConfig) else SFTConfig()
        if own.lora and not has_lora(model):
            add_lora(model.to(frozen_dtype(own)), own.lora, config.seed)
        model.gradient_checkpointing = phase.config.gradient_checkpointing
        loss_module: nn.Module = MaskedDiffusionLoss(model)
        if own.sharding == "fsdp" and dist.is_initialized():
            shard(loss_module, model, get_device(), own.precision == "bf16", own.offload)
        else:
            loss_module = prepare_model(loss_module)
        optimizer = adamw(model, phase.config.optimizer)
        if resume and resumed:
            checkpoint_tensors.restore_optimizer(optimizer, checkpoint_tensors.read(resume, "optimizer"))
        demonstrations = Demonstrations(config, phase, tokenizer, model.config.eos_token_id)
        held_out = demonstrations.validation(own.validation_examples) if own.validate_every else []
        best = Best(**position["best"]) if resumed and "best" in position else Best()
        chosen = phase.save_to.with_name(f"{phase.save_to.name}-best") if phase.save_to else None
        for step in range(position["step"] if resumed else 0, phase.config.steps):
            row = training_step(loss_module, model, optimizer, demonstrations, step)
            done = step + 1
            if own.validate_every and (done % own.validate_every == 0 or done == phase.config.steps):
                row["validation_loss"] = validation_loss(loss_module, model, held_out, phase.config)
                best.later += 1
                if row["validation_loss"] < best.loss:
                    best = Best(row["validation_loss"], done)
                    check(claims)
                    save_merged(model, base, own, chosen, tokenizer, keeps)
            stop = stop_wished(settings["bulletin"], row, keeps, model, config.cluster.deadline_s)
            every = phase.config.checkpoint_every
            if stop or (every and done % every == 0):
                state = {"phase": phase.number, "step": done, "best": asdict(best)}
                save_checkpoint(settings["checkpoints"], state, model, optimizer, tokenizer, base, claims)
            if stop:
                return
            if own.patience is not None and best.later >= own.patience:
                break
        check(claims)
        if best.step and chosen and phase.save_to:
            if keeps:
                chosen.rename(phase.save_to)
        else:
            save_merged(model, base, own, phase.save_to, tokenizer, keeps)
        if not is_sharded(model):
            model = unadapted(model).requires_grad_(True)
        base = phase.save_to or base


def stop_wished(
    bulletin: ActorHandle, row: dict[str, Any], keeps: bool, model: DiffusionLM, deadline_s: float
) -> bool:
    """Posts rank 0's row and tells every rank alike whether to stop."""
    wished = torch.zeros(1, device=device_of(model))
    if keeps:
        wished += ray.get(bulletin.post.remote(row), timeout=deadline_s)
    if dist.is_initialized():
        dist.broadcast(wished, src=0)
    return bool(wished.item())
