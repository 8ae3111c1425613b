"""What LLaDA's and Dream's blocks share: RMSNorm, rotary positions, and attention over some columns.

Shapes: B rows, L columns, N computed columns, Q columns with queries, H heads, G key heads, D head size,
d model width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d1ray.models.cache import KVCache
from d1ray.models.columns import Columns


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 whatever the input's type."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight


def rotary_angles(position_ids: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles in fp32: ``[B or 1, 1, L, D]`` each, for rotate-half RoPE."""
    frequencies = theta ** -(
        torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32) / head_size
    )
    angles = position_ids[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotate-half RoPE to ``x [B, H, L, D]`` in fp32."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


@dataclass(frozen=True)
class Scope:
    """What one block's attention covers, beside the hidden states it is given.

    Attributes:
        cos, sin: ``[B or 1, 1, N, D]`` rotary angles of the N computed columns.
        mask: ``[B, 1, 1, L]`` or, for each computed column its own, ``[B, 1, N, L]``: True where a column
            may be attended. None for everywhere.
        queries: which of the N columns have an output; None for all. The others only give keys and values.
        layer: the block's place in ``cache``.
        cache: holds the keys and values of all L columns, or None when all are computed here.
        columns: where the N columns lie among the L of the cache; None for all.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    queries: Columns | None = None
    layer: int = 0
    cache: KVCache | None = None
    columns: Columns | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """The columns of ``x [B, N, d]`` that have an output: ``[B, Q, d]``."""
        return x if self.queries is None else self.queries.take(x)


def attend(
    h: Tensor, q_proj: nn.Module, k_proj: nn.Module, v_proj: nn.Module, head_size: int, scope: Scope
) -> Tensor:
    """Bidirectional attention, grouped-query where there are fewer key heads than heads.

    Args:
        h: normed hidden states ``[B, N, d]`` of the computed columns.

    Returns:
        ``[B, Q, H D]``, before the output projection.
    """
    q = q_proj(scope.outputs(h)).unflatten(-1, (-1, head_size)).transpose(1, 2)  # [B, H, Q, D]
    k, v = (p(h).unflatten(-1, (-1, head_size)).transpose(1, 2) for p in (k_proj, v_proj))  # [B, G, N, D]
    cos, sin = scope.cos, scope.sin
    k = rotate(k, cos, sin)
    if scope.queries is not None:
        cos, sin = scope.queries.take(cos, dim=2), scope.queries.take(sin, dim=2)
    q = rotate(q, cos, sin)
    if scope.cache is not None:
        k, v = scope.cache.update(scope.layer, k, v, scope.columns)  # [B, G, L, D]
    heads, key_heads, mask = q.shape[1], k.shape[1], scope.mask
    if mask is not None and mask.shape[2] > 1:
        mask = mask if scope.queries is None else scope.queries.take(mask, dim=2)
        mask = mask.repeat(1, 1, heads // key_heads, 1)
    if heads != key_heads:
        # Every query sees the same columns, so the heads that share a key head can stand in line as
        # further queries of it: no copies of keys and values, and no kernel that knows of groups.
        q = q.unflatten(1, (key_heads, -1)).flatten(2, 3)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if heads != key_heads:
        attended = attended.unflatten(2, (heads // key_heads, -1)).flatten(1, 2)
    return attended.transpose(1, 2).flatten(2)
