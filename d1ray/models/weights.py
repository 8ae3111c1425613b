"""Weights in transit: a model's tensors as buckets of bytes, and their copy into another model."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

BUCKET_BYTES = 256 * 1024**2
Bucket = dict[str, NDArray[np.uint8]]


def bucket_names(model: nn.Module, limit: int = BUCKET_BYTES) -> list[list[str]]:
    """Parameter names grouped, in order, into buckets of at most ``limit`` bytes (one tensor at least)."""
    groups: list[list[str]] = []
    size = limit
    for name, tensor in model.state_dict().items():
        size += tensor.nbytes
        if size > limit:
            groups.append([])
            size = tensor.nbytes
        groups[-1].append(name)
    return groups


def pack(model: nn.Module, names: Iterable[str]) -> Bucket:
    """The named tensors as byte arrays that share no memory with the model."""
    state = model.state_dict()
    return {n: state[n].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().copy() for n in names}


def copy_into(model: nn.Module, bucket: Mapping[str, NDArray[np.uint8]]) -> None:
    """Copies a bucket into ``model`` in place; the arrays are only read (Ray shares their memory).

    Raises:
        KeyError: the model has no tensor of that name.
        RuntimeError: a tensor's size differs.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, data in bucket.items():
            target = state[name]
            source = torch.frombuffer(bytearray(data), dtype=target.dtype)
            target.copy_(source.view(target.shape))
