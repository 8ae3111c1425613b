"""The diffusion core: masking noise, the sampler and likelihood estimators."""

from d1ray.config import SamplerConfig
from d1ray.diffusion.likelihood import View, one_step_view, token_logps
from d1ray.diffusion.masked_loss import MaskedDiffusionLoss, noised_inputs
from d1ray.diffusion.noise import forward_process, prompt_mask
from d1ray.diffusion.sampler import Samples, sample

__all__ = [
    "MaskedDiffusionLoss",
    "SamplerConfig",
    "Samples",
    "View",
    "forward_process",
    "noised_inputs",
    "one_step_view",
    "prompt_mask",
    "sample",
    "token_logps",
]
