"""Checkpoints: a folder whose manifest is written last, so that a half-written one is never loaded.

``checkpoints/step-00012/`` holds ``model/`` (a Hugging Face folder, or a PEFT adapter), further
``*.safetensors`` (optimiser, moved reference), ``state.json`` and ``manifest.json`` with every file's
SHA-256.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from d1ray.models import DiffusionLM, save_model
from d1ray.models.adapter_folder import save_adapter
from d1ray.models.lora import has_lora
from d1ray.models.sharding import gathered, spread_like
from d1ray.models.tokenizer import save_tokenizer

MANIFEST = "manifest.json"


def save(
    root: Path,
    step: int,
    model: DiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    base: Path | None = None,
) -> Path:
    """Writes ``root/step-<step>``, then removes all but the last ``keep`` checkpoints up to it.

    Checkpoints of later steps go too: they are damaged, or of a future that was rolled back.

    Args:
        tensors: further tensor files by name, e.g. ``{"optimizer": {...}}``.
        state: JSON values: step, data cursor, incarnation, best validation.
        base: the folder of the model that an adapted ``model`` adapts; of it only the adapter is written.
    """
    final = root / f"step-{step:05d}"
    folder = root / f".{final.name}.writing"
    shutil.rmtree(folder, ignore_errors=True)
    if has_lora(model):
        save_adapter(model, folder / "model", str(base or ""))
        save_tokenizer(tokenizer, folder / "model")
    else:
        save_model(model, folder / "model", tokenizer)
    for name, group in tensors.items():
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in group.items()}, folder / f"{name}.safetensors"
        )
    (folder / "state.json").write_text(json.dumps(dict(state), indent=2))
    digests = {str(f.relative_to(folder)): _digest(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "sha256": digests}, indent=2))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(folder, final)
    checkpoints = _by_step(root)
    written = checkpoints.index(final) + 1
    for other in checkpoints[: max(0, written - keep)] + checkpoints[written:]:
        shutil.rmtree(other)
    return final


def latest(root: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; a damaged one falls back to the one before."""
    return next((c for c in reversed(_by_step(root)) if is_complete(c)), None)


def is_complete(folder: Path) -> bool:
    """True if every file of the manifest is there with its SHA-256."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())["sha256"]
        return all(_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of a manifest that is not ours, too
        return False


def newest_step(root: Path) -> int:
    """The step of the newest checkpoint, going by its name (``latest`` reads it all); 0 if there is none."""
    return max((int(folder.name.removeprefix("step-")) for folder in _by_step(root)), default=0)


def load_state(folder: Path) -> dict[str, Any]:
    """The JSON state of a complete checkpoint."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """A further tensor file of a checkpoint, by the name it was saved under; {} if there is none."""
    file = folder / f"{name}.safetensors"
    return load_file(file) if file.exists() else {}


def optimizer_tensors(optimizer: torch.optim.Optimizer, keep: bool = True) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors: ``{"<parameter index>.<entry>": tensor}``.

    Of sharded parameters they are gathered, on all ranks together, for those that ``keep`` them.
    """
    state = optimizer.state_dict()["state"]
    return gathered(
        {f"{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}, keep
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``, in place."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        like = parameters[int(index)]
        own = spread_like(tensor, like) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[entry] = own
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _by_step(root: Path) -> list[Path]:
    """Checkpoint folders by step: longer names last, because steps have five digits or more."""
    return sorted(root.glob("step-*"), key=lambda folder: (len(folder.name), folder.name))


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
