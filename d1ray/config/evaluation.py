"""Validation, the final table, `d1ray evaluate`, and the limits of a check."""

from pydantic import Field, NonNegativeFloat, PositiveFloat

from d1ray.config.sampling import SamplerConfig
from d1ray.config.settings import PositiveInt, Strict


class EvaluationSamplerConfig(SamplerConfig):
    """Greedy unless asked otherwise."""

    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")


class EvaluationConfig(Strict):
    """Validation chooses the checkpoint; test only reports. Greedy, as d1 evaluates."""

    examples: PositiveInt = Field(1024, description="test examples of the final table")
    validation_examples: PositiveInt = 256
    batch_size: PositiveInt = 64
    sampling: EvaluationSamplerConfig = EvaluationSamplerConfig()


class ScoringConfig(Strict):
    """Limits of one check of one completion (``d1ray.tasks.checker``)."""

    timeout_s: PositiveFloat = Field(3.0, description="CPU seconds; a check that takes more scores 0")
    memory_gb: PositiveFloat = Field(2.0, description="of a checking process")
