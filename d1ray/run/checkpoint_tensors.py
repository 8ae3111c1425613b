"""The tensors of a checkpoint: of its model or adapter, and of its optimiser."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from d1ray.models.adapter_folder import PREFIX
from d1ray.models.hub import is_adapter_folder
from d1ray.models.sharding import spread_like
from d1ray.run.checkpoint import ADAPTER, MODEL


def read(folder: Path, group: str) -> Iterator[tuple[str, Tensor]]:
    """A group's tensors by name, one in memory at a time; none if the checkpoint has no such group."""
    for file in sorted(folder.glob(f"{group}*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield name, reader.get_tensor(name)


def read_model(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors: the model's, or its adapter's by PEFT's names without prefix."""
    adapter = is_adapter_folder(folder / "model")
    for name, tensor in read(folder, ADAPTER if adapter else MODEL):
        yield name.removeprefix(PREFIX) if adapter else name, tensor


def load_tensors(folder: Path, group: str) -> dict[str, Tensor]:
    """All tensors of a group; {} if there is none."""
    return dict(read(folder, group))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors, ``{"<parameter index>.<entry>": tensor}``, sharded or not."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
) -> None:
    """Gives an optimiser the state that ``optimizer_tensors`` described, each rank its part of it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        index, entry = name.split(".", 1)
        like = parameters[int(index)]
        own = spread_like(tensor, like) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[entry] = own
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
