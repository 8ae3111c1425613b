"""Model folders in the Hugging Face layout: ``config.json``, ``*.safetensors``, tokenizer files."""

import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from d1ray.errors import ModelError
from d1ray.models.llada import LLaDA, LLaDAConfig

WEIGHTS = "model.safetensors"

# What LLaDA's config.json can ask for, and this implementation does one way.
ONLY: dict[str, object] = {
    "model_type": "llada",
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "scale_logits": False,
}


def save_model(model: LLaDA, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Writes ``config.json`` with LLaDA's field names, ``model.safetensors`` and the tokenizer.

    The folder appears whole or not at all; an existing one is replaced.
    """
    final = Path(folder)
    folder = final.with_name(f".{final.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {k: v for k, v in asdict(model.config).items() if v is not None} | ONLY
    config |= {
        "architectures": ["LLaDAModelLM"],
        "embedding_size": model.config.vocab_size,
        "torch_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(folder, final)


def read_config(folder: Path | str) -> LLaDAConfig:
    """Reads a folder's ``config.json``.

    Raises:
        ModelError: no folder, no readable ``config.json``, another architecture, or a missing field.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it holds no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    for key, supported in ONLY.items():
        found = config.get(key, None if key == "model_type" else supported)
        if found != supported:
            raise ModelError(f"{path}: {key} is {found!r}; supported: {supported!r}")
    known = {field.name for field in fields(LLaDAConfig)}
    try:
        return LLaDAConfig(**{k: v for k, v in config.items() if k in known and v is not None})
    except TypeError as error:
        raise ModelError(f"{path}: {error}".replace("LLaDAConfig.__init__() ", "")) from error


def check_weights(folder: Path | str) -> dict[str, Path]:
    """Compares the tensors of a folder with its ``config.json``, reading the files' headers only.

    Returns:
        The file that holds each tensor, by name.

    Raises:
        ModelError: unreadable files, or missing, unexpected or wrongly shaped tensors (listed).
    """
    folder = Path(folder)
    with torch.device("meta"):
        model = LLaDA(read_config(folder))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors weights")
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - safe_open is not a mapping
                    found[name] = file, tuple(reader.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}; copy it again") from error
    missing, unexpected = sorted(expected.keys() - found), sorted(found.keys() - expected)
    misshapen = sorted(name for name in expected.keys() & found if found[name][1] != expected[name])
    if missing or unexpected or misshapen:
        raise ModelError(
            f"{folder}: weights do not fit config.json; missing {missing}, unexpected {unexpected}, "
            f"of another shape {misshapen}"
        )
    return {name: file for name, (file, _) in found.items()}


def load_model(folder: Path | str, dtype: torch.dtype = torch.float32) -> LLaDA:
    """Loads a model folder, single or sharded safetensors, strictly; in eval mode.

    Raises:
        ModelError: as ``check_weights``.
    """
    with torch.device("meta"):
        model = LLaDA(read_config(folder))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(check_weights(folder).values())):
        with safe_open(file, framework="pt") as reader:
            tensors |= {name: reader.get_tensor(name).to(dtype) for name in reader.keys()}  # noqa: SIM118
    model.load_state_dict(tensors, assign=True)
    return model.eval()
