"""Weights in transit: a model's trained tensors as buckets of bytes, and their copy into another model.

Full fine-tuning sends every tensor of the model; LoRA sends the adapter alone.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d1ray.models.lora import POLICY, adapter_tensors, has_lora
from d1ray.models.sharding import whole

BUCKET_BYTES = 256 * 1024**2
Bucket = dict[str, NDArray[np.uint8]]


def live_tensors(model: nn.Module, adapter: str = POLICY) -> dict[str, Tensor]:
    """What training changes, by name: the adapter's tensors if the model has adapters, else all of them.

    They share memory with the model: copying into them changes it.
    """
    return adapter_tensors(model, adapter) if has_lora(model) else dict(model.state_dict())


def bucket_names(tensors: Mapping[str, Tensor], limit: int = BUCKET_BYTES) -> list[list[str]]:
    """Tensor names grouped, in order, into buckets of at most ``limit`` bytes (one tensor at least)."""
    groups: list[list[str]] = []
    size = limit
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()  # of the whole, where it is sharded
        size += nbytes
        if size > limit:
            groups.append([])
            size = nbytes
        groups[-1].append(name)
    return groups


def pack(
    tensors: Mapping[str, Tensor],
    names: Iterable[str],
    keep: bool = True,
    dtype: torch.dtype | None = None,
    send: Callable[[Tensor], None] | None = None,
) -> Bucket:
    """The named tensors as byte arrays, cast to ``dtype`` if it is given. ``send`` gets each of them as well.

    On the CPU they are the model's own memory: whoever sends them has to, before the model changes.

    Of sharded tensors they are gathered one by one, on all ranks together, for those that ``keep`` them.
    """
    bucket = {}
    for name in names:
        tensor = whole(tensors[name].detach())
        if keep:
            tensor = tensor.to(dtype or tensor.dtype).contiguous()
            if send:
                send(tensor)
            bucket[name] = tensor.cpu().view(-1).view(torch.uint8).numpy()
    return bucket


def copy_into(tensors: Mapping[str, Tensor], bucket: Mapping[str, NDArray[np.uint8]]) -> None:
    """Copies a bucket into ``tensors`` in place; the arrays are only read (Ray shares their memory).

    Raises:
        KeyError: there is no tensor of that name.
        RuntimeError: a tensor's size differs.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        for name, data in bucket.items():
            target = tensors[name]
            source = torch.from_numpy(np.asarray(data)).view(target.dtype)
            target.copy_(source.view(target.shape))
