"""The model in supervised training: what it starts from, and what of it is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from d1ray.config.lora import LoRAConfig
from d1ray.config.sft import MaskedTrainingConfig, SFTConfig
from d1ray.models.adapter_folder import load_adapter
from d1ray.models.hub import is_adapter_folder
from d1ray.models.load import load_model
from d1ray.models.lora import adapter_tensors, add_lora, unadapted
from d1ray.models.model import DiffusionLM
from d1ray.models.save import save_model
from d1ray.models.sharding import is_sharded, unsharded
from d1ray.run import checkpoint, checkpoint_tensors, checkpoint_writer
from d1ray.run.checkpoint import Place
from d1ray.run.claims import Claim
from d1ray.sft.demonstrations import Phase


def resumable(root: Place, phases: Sequence[Phase]) -> Place | None:
    """The newest checkpoint if it was taken within one of ``phases``."""
    newest = checkpoint.latest(root)
    if newest and checkpoint.load_state(newest)["phase"] in {phase.number for phase in phases}:
        return newest
    return None


def frozen_dtype(config: MaskedTrainingConfig) -> torch.dtype:
    """Of the weights before an adapter is added: frozen ones need no more bits than the computation."""
    frozen = isinstance(config, SFTConfig) and config.lora is not None
    return torch.bfloat16 if frozen and config.precision == "bf16" else torch.float32


def start_model(
    start: Path, resume: Path | None, dtype: torch.dtype = torch.float32
) -> tuple[DiffusionLM, Path]:
    """The model to train, and the folder of the model that an adapter of it adapts.

    A checkpoint's adapter goes on being trained beside ``start``, wherever the run folder was moved
    since: a phase with an adapter is the first after a saved model. A PEFT folder as ``start`` is merged.
    """
    if resume is None:
        return load_model(start, dtype), start
    trained = resume / "model"
    if is_adapter_folder(trained):
        return load_adapter(load_model(start, dtype), trained), start
    return load_model(trained, dtype), trained


def save_merged(
    model: DiffusionLM,
    base: Path,
    config: SFTConfig,
    folder: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    keeps: bool,
) -> None:
    """Writes the model with its adapter merged; every rank calls it, and one ``keeps`` the file.

    An adapter of bf16 weights is merged into the weights of ``base`` in fp32.
    """
    if folder is None:
        return
    plain = unsharded(model, config.lora, keeps) if is_sharded(model) else model
    if not keeps or plain is None:
        return
    if config.lora and frozen_dtype(config) != torch.float32:
        plain = readapted(plain, base, config.lora)
    save_model(unadapted(plain), folder, tokenizer)


def readapted(model: DiffusionLM, base: Path, lora: LoRAConfig) -> DiffusionLM:
    """The model of ``base`` in fp32 with the adapter of ``model``."""
    fresh = add_lora(load_model(base), lora)
    trained = adapter_tensors(model)
    for name, tensor in adapter_tensors(fresh).items():
        tensor.copy_(trained[name])
    return fresh


def save_checkpoint(
    root: Place,
    state: dict[str, Any],
    model: DiffusionLM,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    base: Path,
    claims: Sequence[Claim] = (),
) -> None:
    """Writes a checkpoint; every rank calls it. ``claims`` as of ``CheckpointWriter``."""
    tensors = {"optimizer": checkpoint_tensors.optimizer_tensors(optimizer)}
    checkpoint_writer.save(root, state["step"], model, tokenizer, tensors, state, 1, base, claims)
