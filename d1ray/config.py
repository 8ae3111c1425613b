"""Every setting and its one default, as strict pydantic models; YAML recipes and ``key=value`` overrides.

The defaults are d1's published hyper-parameters (arXiv 2504.12216, Section 4 and Appendix B).
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializeAsAny,
    model_validator,
)

from d1ray.tasks import Task, load_task
from d1ray.tasks.task import DemonstrationStyle

# Whole numbers are strict: YAML reads `yes` as true, which pydantic would take for 1. Real numbers are not:
# YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]  # Ray Train changes the working directory
Probability = Annotated[float, Field(ge=0, le=1)]
MomentumDecay = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerConfig(Strict):
    """How completions are denoised (LLaDA, arXiv 2502.09992, Algorithm 5; Fast-dLLM for ``threshold``)."""

    gen_length: PositiveInt = Field(256, description="completion length in tokens")
    steps: PositiveInt = Field(128, description="denoising steps of the fixed schedule")
    block_length: PositiveInt = Field(32, description="semi-autoregressive block, in tokens")
    temperature: NonNegativeFloat = Field(0.9, description="0 is greedy")
    decoding: Literal["low_confidence", "threshold"] = Field(
        "low_confidence", description="which positions a denoising step commits"
    )
    threshold: Probability = Field(0.9, description="confidence above which `threshold` commits")

    @model_validator(mode="after")
    def _blocks_divide(self) -> Self:
        if self.gen_length % self.block_length:
            raise ValueError(
                f"block_length={self.block_length} does not divide gen_length={self.gen_length}; "
                f"choose a block_length that does"
            )
        blocks = self.gen_length // self.block_length
        if self.steps % blocks or self.steps > self.gen_length:
            raise ValueError(
                f"steps={self.steps} must be a multiple of the {blocks} block(s) of "
                f"gen_length={self.gen_length} and at most gen_length"
            )
        return self


class OptimizerConfig(Strict):
    """AdamW with warm-up, then a constant or linearly decaying learning rate."""

    learning_rate: PositiveFloat = 3e-6
    schedule: Literal["constant", "linear"] = "constant"
    warmup_updates: NonNegativeInt = 0
    final_ratio: Probability = Field(0.0, description="last learning rate over the peak, for `linear`")
    betas: tuple[MomentumDecay, MomentumDecay] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.1
    max_grad_norm: PositiveFloat = 0.2


class MaskedTrainingOptimizerConfig(OptimizerConfig):
    """d1's SFT optimiser where it differs from its RL one."""

    learning_rate: PositiveFloat = 1e-5
    max_grad_norm: PositiveFloat = 1.0


class MaskedTrainingConfig(Strict):
    """Masked-diffusion training on demonstrations: pre-training phases and SFT."""

    demonstrations: DemonstrationStyle = "clean"
    examples: PositiveInt | None = Field(
        None, description="distinct demonstrations; null: unlimited fresh ones"
    )
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    eps: float = Field(1e-3, gt=0, le=1, description="smallest masking probability t")
    optimizer: MaskedTrainingOptimizerConfig = MaskedTrainingOptimizerConfig()


class ArchitectureConfig(Strict):
    """A LLaDA architecture to make from scratch."""

    d_model: PositiveInt = 128
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 4
    mlp_hidden_size: PositiveInt = 384
    max_sequence_length: PositiveInt = 256
    rope_theta: PositiveFloat = 500_000.0
    pretraining: tuple[MaskedTrainingConfig, ...] = ()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"n_heads={self.n_heads} must split d_model={self.d_model} into heads of even size (RoPE)"
            )
        return self


class ModelConfig(Strict):
    """Where the model comes from: an existing Hugging Face folder, or an architecture to make."""

    path: AbsolutePath | None = None
    make: ArchitectureConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.make is None):
            raise ValueError("set exactly one of model.path (a folder) and model.make (an architecture)")
        return self


class DataConfig(Strict):
    """Where examples come from: the task's generator, or Parquet/JSONL files."""

    path: AbsolutePath | None = Field(
        None, description="file, or folder with train.* and test.*; null: generated"
    )
    max_prompt_length: PositiveInt = Field(200, description="tokens, chat template included")
    max_completion_length: PositiveInt = Field(256, description="tokens; SFT pads completions to it with EOS")


class RLConfig(Strict):
    """diffu-GRPO (d1, Section 3 and Table 5)."""

    steps: NonNegativeInt = Field(640, description="outer steps: generate, score, mu updates, publish")
    prompts_per_step: PositiveInt = 16
    group_size: Annotated[int, Field(strict=True, ge=2)] = 6
    mu: PositiveInt = Field(12, description="inner updates per batch of rollouts")
    epsilon: PositiveFloat = Field(0.5, description="PPO clip range")
    beta: NonNegativeFloat = Field(0.04, description="weight of the k3 KL to the reference")
    prompt_mask_prob: Probability = Field(0.15, description="prompt tokens masked in the likelihood")
    mask_scope: Literal["group", "completion"] = Field(
        "group", description="one prompt mask per group (G-fold cheaper) or per completion (d1's own)"
    )
    skip_zero_advantage: bool = Field(False, description="leave groups with equal rewards out of the loss")
    reference_sync_updates: PositiveInt | None = Field(64, description="null: the reference never moves")
    staleness: NonNegativeInt = Field(0, description="0 is synchronous")
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplerConfig = SamplerConfig()
    micro_batch_tokens: PositiveInt = Field(16384, description="tokens per forward/backward")
    validate_every: PositiveInt = Field(20, description="outer steps between validations")
    checkpoint_every: PositiveInt = 20
    keep_checkpoints: PositiveInt = 2


class EvaluationSamplerConfig(SamplerConfig):
    """Greedy unless asked otherwise."""

    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")


class EvaluationConfig(Strict):
    """Validation chooses the checkpoint; test only reports. Greedy, as d1 evaluates."""

    examples: PositiveInt = Field(1024, description="test examples of the final table")
    validation_examples: PositiveInt = 256
    batch_size: PositiveInt = 64
    sampling: EvaluationSamplerConfig = EvaluationSamplerConfig()


class ClusterConfig(Strict):
    """Actors and what each one holds. Logical CPUs only account; `threads` sets torch's threads."""

    address: str | None = Field(None, description="null: RAY_ADDRESS, the job's cluster, or a local one")
    generators: PositiveInt = 2
    scorers: PositiveInt = 1
    generator_cpus: NonNegativeFloat = 1
    generator_gpus: NonNegativeFloat = 0
    generator_threads: PositiveInt = 1
    scorer_cpus: NonNegativeFloat = 1
    learner_cpus: NonNegativeFloat = 1
    learner_gpus: NonNegativeFloat = 0
    learner_threads: PositiveInt = 1
    sft_workers: PositiveInt = 1
    sft_threads: PositiveInt = 1
    sft_worker_cpus: PositiveFloat = 1
    sft_worker_gpus: NonNegativeFloat = 0
    dashboard: bool = Field(False, description="start the Ray dashboard with a local cluster")
    deadline_s: PositiveFloat = Field(600, description="longest wait for any one call, in seconds")


class Config(Strict):
    """One run. ``load_config`` builds it from a recipe and overrides."""

    about: str = ""
    seed: NonNegativeInt = 0
    run_dir: AbsolutePath | None = Field(None, description="null: runs/RECIPE")
    task: Annotated[SerializeAsAny[Task], BeforeValidator(load_task)]
    data: DataConfig = DataConfig()
    model: ModelConfig
    sft: MaskedTrainingConfig | None = None
    rl: RLConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _every_worker_has_rows(self) -> Self:
        phases = [
            *(self.model.make.pretraining if self.model.make else ()),
            *([self.sft] if self.sft else []),
        ]
        for phase in phases:
            if phase.batch_size < self.cluster.sft_workers:
                raise ValueError(
                    f"cluster.sft_workers={self.cluster.sft_workers} is more than a batch_size of "
                    f"{phase.batch_size}: every worker needs a row"
                )
        return self

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if self.model.make is not None:
            longest = self.data.max_prompt_length + max(
                [self.data.max_completion_length, self.evaluation.sampling.gen_length]
                + ([self.rl.sampling.gen_length] if self.rl else [])
            )
            if longest > self.model.make.max_sequence_length:
                raise ValueError(
                    f"data.max_prompt_length plus the longest completion is {longest} tokens, more than "
                    f"model.make.max_sequence_length={self.model.make.max_sequence_length}"
                )
        return self
