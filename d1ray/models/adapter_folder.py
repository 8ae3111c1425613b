"""Adapters in folders of PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d1ray.config.errors import ModelError
from d1ray.config.lora import LoRAConfig
from d1ray.models.hub import ADAPTER_CONFIG, ALL_FILES, is_adapter_folder, model_folder
from d1ray.models.lora import POLICY, adapter_tensors, add_lora, require_adapter, targeted
from d1ray.models.model import DiffusionLM

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in PEFT's files
OFF: tuple[Any, ...] = (None, False, [], {})
SUPPORTED: dict[str, tuple[Any, ...]] = {  # values of PEFT's settings that change what is computed
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # PiSSA, OLoRA and others change the base weights too
    **dict.fromkeys(("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias"), OFF),
    **dict.fromkeys(("fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform"), OFF),
    **dict.fromkeys(("modules_to_save", "layer_replication", "target_parameters"), OFF),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens", "kasa_config"), OFF),
}


def save_adapter(model: DiffusionLM, folder: Path | str, base: str = "", name: str = POLICY) -> None:
    """Writes one adapter in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        model: has the adapter.
        folder: made if need be.
        base: the folder or hub id of the model that the adapter belongs to.
        name: the adapter's name in ``model``.

    Raises:
        ModelError: the model has no adapter of that name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter_config(model, folder, base, name)
    tensors = {
        PREFIX + path: tensor.cpu().contiguous() for path, tensor in adapter_tensors(model, name).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def save_adapter_config(model: DiffusionLM, folder: Path, base: str = "", name: str = POLICY) -> None:
    """Writes ``adapter_config.json``; arguments and errors as of ``save_adapter``."""
    require_adapter(model, name)
    config: Any = model.peft_config[name]  # type: ignore[index]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)


def base_of(folder: Path) -> str:
    """The folder or hub id of the model that a PEFT folder adapts.

    A relative path counts from the adapter's folder if it leads somewhere there, else from the current
    folder.

    Raises:
        ModelError: the folder names none.
    """
    base = _read_json(folder).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder / ADAPTER_CONFIG} does not say which model it adapts")
    beside = (folder / str(base)).resolve()
    return str(beside if beside.is_dir() else base)


def base_folder(folder: Path, files: Sequence[str] = ALL_FILES) -> Path:
    """The local folder of the model that a PEFT folder adapts; of a hub model, ``files`` are downloaded.

    Raises:
        ModelError: the folder names none, it is not to be had, or it is an adapter itself.
    """
    base = model_folder(base_of(folder), files)
    if is_adapter_folder(base):
        raise ModelError(
            f"{folder} adapts {base}, which is an adapter itself; save the merged model of that one "
            f"(save_model of load_model) and name its folder as base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    return base


def read_adapter(folder: Path | str) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """The settings and tensors (by PEFT's names without prefix) of a PEFT folder; only safetensors are read.

    Raises:
        ModelError: the folder holds no LoRA adapter of this kind; the reason is named.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} is no adapter folder: it needs {ADAPTER_CONFIG} and {WEIGHTS}")
    found = _read_json(folder)
    for key, supported in SUPPORTED.items():
        if found.get(key, supported[0]) not in supported:
            listed = ", ".join(map(repr, supported))
            raise ModelError(f"{folder}: adapter {key} is {found[key]!r}; supported: {listed}")
    try:
        tensors = load_file(folder / WEIGHTS)
        config = LoRAConfig(r=found["r"], alpha=found["lora_alpha"], targets=found["target_modules"])
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}; copy it again") from error
    except (KeyError, ValidationError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG} does not fit: {error}") from error
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def load_adapter(model: DiffusionLM, folder: Path | str, name: str = POLICY) -> DiffusionLM:
    """Adds the adapter of a PEFT folder to the model, in place.

    Raises:
        ModelError: as ``check_adapter``, or the model has an adapter ``name`` already. The model is as it
            was.
    """
    config, tensors = check_adapter(model, folder)
    for path, tensor in adapter_tensors(add_lora(model, config, name=name), name).items():
        tensor.copy_(tensors[path])
    return model


def check_adapter(model: DiffusionLM, folder: Path | str) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Reads the adapter of a PEFT folder and compares it with a model, which may be on the meta device.

    Returns:
        What ``read_adapter`` does.

    Raises:
        ModelError: as ``read_adapter``, or the adapter does not fit the model (differing names are listed).
    """
    config, tensors = read_adapter(folder)
    expected: dict[str, tuple[int | None, ...]] = {}
    for path, layer in targeted(model, config).items():
        expected[f"{path}.lora_A.weight"] = (config.r, layer.in_features)
        expected[f"{path}.lora_B.weight"] = (layer.out_features, config.r)
    found = {path: tuple(tensor.shape) for path, tensor in tensors.items()}
    differing = sorted(
        path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)
    )
    if differing:
        raise ModelError(
            f"{folder}: the adapter does not fit the model; differing: {', '.join(differing[:6])}"
        )
    return config, tensors


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{folder / ADAPTER_CONFIG} holds no JSON object")
    return values
