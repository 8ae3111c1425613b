"""AdamW and its learning-rate schedule, shared by SFT and RL."""

import torch
from torch import nn

from d1ray.config.optimizer import OptimizerConfig
from d1ray.models.sharding import whole


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms and biases are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
    )


def learning_rate(update: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of update ``update`` (from 0) of ``total``: linear warm-up, then the schedule.

    `linear` falls from the peak at the end of the warm-up to ``final_ratio`` x peak at the last update.
    """
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    span = max(1, total - 1 - config.warmup_updates)
    progress = min(1.0, (update - config.warmup_updates) / span)
    return config.learning_rate * (1 - (1 - config.final_ratio) * progress)


def move(module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves a module's weights and its optimiser's state to ``device``, in place."""
    module.to(device)
    for state in optimizer.state.values():
        for name, value in state.items():
            if name != "step":  # a scalar that AdamW keeps on the CPU
                state[name] = value.to(device)
    torch.cuda.empty_cache()


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, config: OptimizerConfig
) -> tuple[float, bool]:
    """Clips, steps and clears the gradients; a non-finite gradient is dropped, not applied.

    Returns:
        The gradient norm before clipping, and whether the step was applied.
    """
    norm = float(whole(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
    applied = norm == norm and norm != float("inf")
    if applied:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, applied
