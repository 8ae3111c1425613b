"""Settings: every one with its default, its type and what it may be combined with, and nothing else.

No torch, transformers or Ray: the command line answers, and refuses what is wrong, before any of them loads.
"""

from d1ray.config.exports import on_demand

__getattr__ = on_demand(
    {
        "config.cluster": "ClusterConfig TrackingConfig",
        "config.data": "DataConfig",
        "config.evaluation": "EvaluationConfig EvaluationSamplerConfig ScoringConfig",
        "config.lora": "LoRAConfig",
        "config.model": "ArchitectureConfig ModelConfig",
        "config.optimizer": "OptimizerConfig",
        "config.recipe": "load_config recipe_names",
        "config.rl": "MismatchConfig RLConfig",
        "config.run": "Config",
        "config.sampling": "SamplerConfig",
        "config.sft": "MaskedTrainingConfig MaskedTrainingOptimizerConfig SFTConfig",
    }
)
