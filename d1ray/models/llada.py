"""LLaDA (arXiv 2502.09992): a bidirectional transformer that predicts masked tokens, in plain PyTorch.

Parameter names are the original checkpoint's, so Hugging Face folders load without remote code:
``model.transformer.{wte, blocks.{i}.{attn_norm, q_proj, k_proj, v_proj, attn_out, ff_norm, ff_proj,
up_proj, ff_out}, ln_f, ff_out}``. There is no logit shift: position i's logits predict token i.

Shapes: B rows, L tokens, H heads, D head size, d model width, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d1ray import rng


@dataclass(frozen=True)
class LLaDAConfig:
    """The fields of LLaDA's ``config.json`` that shape the network, by their original names."""

    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden_size: int
    vocab_size: int
    max_sequence_length: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    n_kv_heads: int | None = None
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


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


class Block(nn.Module):
    """Pre-norm attention and SwiGLU: ``ff_out(silu(ff_proj x) * up_proj x)``."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        d, kv = config.d_model, config.kv_heads * config.head_size
        self.head_size = config.head_size
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attendable: Tensor | None) -> Tensor:
        h = self.attn_norm(x)
        q, k, v = (
            projection(h).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # [B, H, L, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(
            rotate(q, cos, sin),
            rotate(k, cos, sin),
            v,
            attn_mask=attendable,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        x = x + self.attn_out(attended.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Transformer(nn.Module):
    """Embedding, blocks, final norm and vocabulary projection, by the checkpoint's names."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = nn.Linear(config.d_model, config.vocab_size, bias=False)


class Body(nn.Module):
    """Only a name: the checkpoint's parameters begin with ``model.transformer``."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.transformer = Transformer(config)


class LLaDA(nn.Module):
    """The LLaDA network. ``forward`` gives logits; samplers and likelihoods use ``hidden`` and ``head``
    so that the vocabulary projection runs only where it is needed."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.config = config
        self.model = Body(config)

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Final hidden states, normed: ``head(hidden)[b, i]`` predicts token i.

        Args:
            input_ids: ``[B, L]``.
            attention_mask: ``[B, L]``, 0 at padding, or None when nothing is padded.
            position_ids: ``[B, L]``; by default positions count the tokens that are not padding,
                so a left-padded row equals the same row unpadded.

        Returns:
            ``[B, L, d]``.
        """
        transformer = self.model.transformer
        attendable = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        cos, sin = rotary_angles(position_ids, self.config.head_size, self.config.rope_theta)
        x = transformer.wte(input_ids)
        for block in transformer.blocks:
            x = block(x, cos, sin, attendable)
        normed: Tensor = transformer.ln_f(x)
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., d]``."""
        logits: Tensor = self.model.transformer.ff_out(hidden)
        return logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, L, V]`` aligned to positions; arguments as in ``hidden``."""
        return self.head(self.hidden(input_ids, attention_mask, position_ids))


def initialise(model: LLaDA, seed: int) -> LLaDA:
    """Fills the weights in place: N(0, 0.02) embeddings, N(0, 1/fan_in) projections, residual outputs
    divided by sqrt(2 layers); norms stay 1. Keyed by the seed, independent of torch's global state."""
    residual_scale = (2 * model.config.n_layers) ** -0.5
    with torch.no_grad():
        for index, (name, weight) in enumerate(model.named_parameters()):
            if weight.dim() < 2:
                continue
            draw = rng.generator(seed, "init", index).standard_normal(tuple(weight.shape), dtype=np.float32)
            scale = 0.02 if ".wte." in name else weight.shape[1] ** -0.5
            if name.endswith(("attn_out.weight", ".ff_out.weight")) and ".blocks." in name:
                scale *= residual_scale
            weight.copy_(torch.from_numpy(draw) * scale)
    return model
