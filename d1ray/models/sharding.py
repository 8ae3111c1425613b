"""FSDP2: a model whose weights, gradients and optimiser state are spread over the ranks of a process group.

Every function here that gathers or scatters is collective: all ranks call it, in the same order.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from d1ray.config.lora import LoRAConfig
from d1ray.models.empty import empty_weights
from d1ray.models.lora import add_lora
from d1ray.models.model import DiffusionLM

if TYPE_CHECKING:  # seconds to import: a process that shares nothing starts without it
    from torch.distributed.tensor import DTensor


def ranks() -> tuple[int, int]:
    """How many ranks there are, and which one this is; one without a process group."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def shard(
    module: nn.Module,
    model: DiffusionLM,
    device: torch.device,
    bf16: bool = False,
    offload: bool = False,
) -> None:
    """Spreads the weights of ``module``, which calls ``model``, over all ranks, in place.

    A block's weights are whole on a rank only while it computes that block; those of no block as long as
    ``module`` runs.

    Args:
        device: of the computation; the weights may be on the CPU, and are moved.
        bf16: matrix products are in bf16, so blocks are gathered in it; their gradients are summed in fp32.
            What flows between blocks, and the weights of no block, keep their type.
        offload: a rank's part of weights, gradients and optimiser state stays in CPU memory; weights visit
            ``device`` block by block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    gathered = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    place = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for block in model.blocks():
        fully_shard(
            block, mesh=mesh, mp_policy=gathered if bf16 else MixedPrecisionPolicy(), offload_policy=place
        )
    fully_shard(module, mesh=mesh, offload_policy=place)


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes; sharded weights may be kept elsewhere."""
    parameter = next(model.parameters())
    if is_spread(parameter):
        return torch.device(parameter.device_mesh.device_type)
    return parameter.device


def is_spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is one rank's part of a larger one."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are spread over ranks."""
    return any(is_spread(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; one that is not sharded as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_like(tensor: Tensor, target: Tensor) -> Tensor:
    """This rank's part of a whole tensor, if ``target`` is sharded."""
    if not is_spread(target):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after the other; nothing where this rank is not to ``keep`` them."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu()
    return found


def unsharded(model: DiffusionLM, lora: LoRAConfig | None, keep: bool) -> DiffusionLM | None:
    """A whole copy on the CPU of a sharded model, with the adapter that ``lora`` describes; on ranks that do
    not ``keep`` it None."""
    state: dict[str, Any] = gathered(model.state_dict(), keep)
    if not keep:
        return None
    with empty_weights():
        copy = type(model)(model.config)
        if lora is not None:
            add_lora(copy, lora)
    copy.load_state_dict(state, assign=True)
    return copy
