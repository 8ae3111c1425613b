"""Low-rank adapters (LoRA, arXiv 2106.09685) through PEFT: W x + (alpha / r) B A x beside frozen weights W.

The model keeps its class and its own methods; PEFT's layers take the place of the targeted
projections. There is no dropout: it would be active in one of two log-probabilities that have to be
equal at equal weights. A model can hold several adapters by name: "policy" is trained, and
"reference" is what it was when the reference was last moved. An adapter belongs to whole weights, never
to another adapter.

Shapes: r rank, d inputs of a projection.
"""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from d1ray.config import rng
from d1ray.config.errors import ModelError
from d1ray.config.lora import LoRAConfig
from d1ray.models.empty import empty_weights
from d1ray.models.model import DiffusionLM

if TYPE_CHECKING:  # PEFT takes seconds to import: actors that have no adapter start without it
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

POLICY, REFERENCE = "policy", "reference"


def add_lora(model: DiffusionLM, config: LoRAConfig, seed: int = 0, name: str = POLICY) -> DiffusionLM:
    """Freezes the model and adds an fp32 adapter to the targeted projections of every block, in place.

    A ~ U(-1/sqrt(d), 1/sqrt(d)) keyed by ``seed``, B = 0: the model's output does not change until the
    adapter is trained. The first adapter stays the active one.

    Raises:
        ModelError: the model has no projection of a given name, or has an adapter ``name`` already. The
            model is as it was.
    """
    from peft import inject_adapter_in_model

    targets = list(targeted(model, config))
    if adapter_tensors(model, name):
        raise ModelError(f"the model already has an adapter {name!r}; give the new one another name")
    active = next((layer.active_adapters for layer in _layers(model)), [name])
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(_peft_config(config, targets), model, adapter_name=name)
        model.peft_config[name].target_modules = set(config.targets)  # type: ignore[index, union-attr]
    for layer in _layers(model):
        layer.set_adapter(active)
    for path, parameter in model.named_parameters():
        if f".{name}." in path and ".lora_" in path:
            parameter.data = parameter.data.float()  # updates of 1e-5 are lost in bf16
    with torch.no_grad():
        for index, (path, tensor) in enumerate(adapter_tensors(model, name).items()):
            tensor.zero_()
            if path.endswith("lora_A.weight"):
                shape = tuple(tensor.shape)  # [r, d]
                draw = rng.generator(seed, "lora init", index).random(shape, dtype=np.float32)
                tensor.copy_(torch.from_numpy((2 * draw - 1) * shape[1] ** -0.5))
    return model


def has_lora(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return bool(_layers(model))


def targeted(model: DiffusionLM, config: LoRAConfig) -> "dict[str, nn.Linear | LoraLayer]":
    """The projections that an adapter would get, by path.

    Raises:
        ModelError: the model has no projection of a given name; those it has are listed.
    """
    projections = _projections(model)
    names = {_last(path) for path in projections}
    missing = [target for target in config.targets if target not in names]
    if missing:
        raise ModelError(
            f"lora.targets: the model has no projection {', '.join(missing)}; "
            f"it has {', '.join(sorted(names))}"
        )
    return {path: layer for path, layer in projections.items() if _last(path) in config.targets}


def adapter_tensors(model: nn.Module, name: str = POLICY) -> dict[str, Tensor]:
    """The tensors of one adapter, by PEFT's names without prefix: ``...q_proj.lora_A.weight``.

    They share memory with the model: copying into them changes it.
    """
    place = re.compile(rf"\.(lora_[AB])\.{re.escape(name)}\.")
    return {
        place.sub(r".\1.", path): parameter.data
        for path, parameter in model.named_parameters()
        if place.search(path)
    }


@contextmanager
def using_adapter(model: DiffusionLM, name: str | None) -> Iterator[DiffusionLM]:
    """Within the context the model computes with adapter ``name``, or with the frozen weights alone.

    Raises:
        ModelError: the model has no adapter ``name``.
    """
    if name is not None:
        require_adapter(model, name)
    layers = _layers(model)
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in layers]
    grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        yield model
    finally:
        for layer, names, disabled in before:
            layer.set_adapter(names)
            layer.enable_adapters(not disabled)
        for parameter, wanted in grad.items():
            parameter.requires_grad_(wanted)


def unadapted(model: DiffusionLM, name: str | None = POLICY) -> DiffusionLM:
    """A model without adapters: ``name`` merged in, W + (alpha / r) B A, or for None the frozen weights.

    It shares all other memory with ``model``; a model without adapters is returned as it is.

    Raises:
        ModelError: the model has adapters, but none of that name.
    """
    if not has_lora(model):
        return model
    if name is not None:
        require_adapter(model, name)
    adapted = set(_layers(model))
    layers: dict[str, Any] = {path: module for path, module in model.named_modules() if module in adapted}
    state = {}
    for path, tensor in model.state_dict().items():
        if ".lora_" in path:
            continue
        layer = layers.get(path.rpartition(".base_layer.")[0])
        if layer is not None and name in layer.lora_A and path.endswith(".base_layer.weight"):
            tensor = tensor + layer.get_delta_weight(name).to(tensor.dtype)
        state[path.replace(".base_layer.", ".")] = tensor
    with empty_weights():
        plain = type(model)(model.config)
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(False).eval()


def _projections(model: DiffusionLM) -> "dict[str, nn.Linear | LoraLayer]":
    """The blocks' projections by path; the vocabulary projection gets no adapter."""
    inside = {module for block in model.blocks() for module in block.modules()}
    adapted = set(_layers(model))
    return {
        path: module
        for path, module in model.named_modules()
        if module in inside
        and (isinstance(module, nn.Linear) or module in adapted)
        and ".lora_" not in path
        and not path.endswith(".base_layer")
    }


def _layers(model: nn.Module) -> "list[LoraLayer]":
    if "peft" not in sys.modules:  # so nobody has added an adapter
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def require_adapter(model: DiffusionLM, name: str) -> None:
    """Raises ModelError if the model has no adapter of that name."""
    if not adapter_tensors(model, name):
        held = ", ".join(map(repr, getattr(model, "peft_config", {}))) or "none"
        raise ModelError(f"the model has no adapter {name!r}; it has {held}")


def _peft_config(config: LoRAConfig, targets: list[str]) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets)
