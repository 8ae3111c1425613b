"""Initial weights, keyed by a seed and independent of torch's global state."""

from typing import TypeVar

import numpy as np
import torch

from d1ray.config import rng
from d1ray.models.model import DiffusionLM

EMBEDDINGS = (".wte.weight", ".embed_tokens.weight")
BLOCKS = (".blocks.", ".layers.")
RESIDUAL_OUTPUTS = (".attn_out.weight", ".ff_out.weight", ".o_proj.weight", ".down_proj.weight")


Model = TypeVar("Model", bound=DiffusionLM)


def initialise(model: Model, seed: int) -> Model:
    """Fills the weights in place: N(0, 0.02) embeddings, N(0, 1/fan_in) projections, residual outputs
    divided by sqrt(2 layers), biases 0; norms stay 1."""
    residual_scale = (2 * model.config.n_layers) ** -0.5
    with torch.no_grad():
        for index, (name, weight) in enumerate(model.named_parameters()):
            if name.endswith(".bias"):
                weight.zero_()
            if weight.dim() < 2:
                continue
            draw = rng.generator(seed, "init", index).standard_normal(tuple(weight.shape), dtype=np.float32)
            scale = 0.02 if name.endswith(EMBEDDINGS) else weight.shape[1] ** -0.5
            if name.endswith(RESIDUAL_OUTPUTS) and any(part in name for part in BLOCKS):
                scale *= residual_scale
            weight.copy_(torch.from_numpy(draw) * scale)
    return model
