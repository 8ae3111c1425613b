"""The diffusion core: masking noise, the sampler and likelihood estimators."""

from d1ray.config.exports import on_demand

__getattr__ = on_demand(
    {
        "config.sampling": "SamplerConfig",
        "diffusion.estimators": "ESTIMATORS load_estimator",
        "diffusion.estimators.estimator": "Estimator Group GroupView",
        "diffusion.likelihood": "View join_views one_step_logps token_logps",
        "diffusion.masked_loss": "Demonstration MaskedDiffusionLoss noised_inputs",
        "diffusion.noise": "forward_process prompt_mask",
        "diffusion.sampler": "Samples sample",
    }
)
