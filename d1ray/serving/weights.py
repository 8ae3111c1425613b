"""Weights: a model to serve, and the version that its answers carry."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from d1ray.config.errors import ModelError
from d1ray.models.load import check_weights, load_model
from d1ray.models.model import DiffusionLM
from d1ray.serving.rowwise import make_rowwise, rowwise_fault

SAMPLED = 64 * 1024  # bytes of each end of a file that a version takes in


@dataclass(eq=False)
class Weights:
    """A model in eval mode.

    Args:
        version: tells these weights from others, for clients.
        asked: whether rows give the same bits whatever they are batched with (``d1ray.serving.rowwise``).
            None: on the CPU with one thread, where the model allows it. More threads share the work by its
            size, which changes with the batch; on a GPU every row's product would read the weights again,
            which is what batching saves.

    Attributes:
        exact: whether they do.

    Raises:
        ModelError: it is asked for, and the model does not allow it.
    """

    model: DiffusionLM
    version: str
    asked: bool | None = None

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        fault = rowwise_fault(self.model)
        if self.asked and fault is not None:
            raise ModelError(fault)
        cheap = fault is None and self.device.type == "cpu" and torch.get_num_threads() == 1
        self.exact = cheap if self.asked is None else self.asked
        if self.exact:
            make_rowwise(self.model)

    def on_device(self, array: NDArray[Any]) -> Tensor:
        """A copy of an array beside the model."""
        return torch.from_numpy(array).to(self.device)


def load_weights(folder: Path, precision: str, exact: bool | None, version: str | None = None) -> Weights:
    """Loads a model folder, hub id or PEFT folder onto the GPU, if there is one.

    Args:
        precision: "fp32" or "bf16".
        version: by default a fingerprint of the files.

    Raises:
        ModelError: as ``d1ray.models.load_model``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Weights(load_model(folder, dtype, device), version or fingerprint(folder), exact)


def fingerprint(folder: Path) -> str:
    """A version for weights that have none: a hash of their files' sizes, beginnings and ends, which replicas
    on other machines agree upon without reading every byte."""
    digest = hashlib.sha256()
    files = {*check_weights(folder).values(), *Path(folder).glob("adapter_model*.safetensors")}
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(SAMPLED))
            stream.seek(max(0, size - SAMPLED))
            digest.update(stream.read(SAMPLED))
    return f"d1ray-{digest.hexdigest()[:12]}"
