"""The diffusion core: masking noise, the sampler and likelihood estimators."""

from d1ray.diffusion.estimators import ESTIMATORS, Estimator, Group, GroupView, load_estimator
from d1ray.diffusion.likelihood import View, join_views, one_step_logps, token_logps
from d1ray.diffusion.masked_loss import Demonstration, MaskedDiffusionLoss, noised_inputs
from d1ray.diffusion.noise import forward_process, prompt_mask
from d1ray.diffusion.sampler import Samples, sample
from d1ray.diffusion.sampler_config import SamplerConfig

__all__ = [
    "ESTIMATORS",
    "Demonstration",
    "Estimator",
    "Group",
    "GroupView",
    "MaskedDiffusionLoss",
    "SamplerConfig",
    "Samples",
    "View",
    "forward_process",
    "join_views",
    "load_estimator",
    "noised_inputs",
    "one_step_logps",
    "prompt_mask",
    "sample",
    "token_logps",
]
